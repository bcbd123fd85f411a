/* LiteRT through its C API, on the CPU: XNNPACK for every node that it knows, the built-in kernels for the others.
 * Declared here is the little of its headers that is used; the bundle holds the library that this was written for. */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "model.h"

#define CPU 1 /* kLiteRtHwAcceleratorCpu */
#define OPERATOR_INVOKE_EVENT 2

typedef struct {
  unsigned int rank : 7;
  unsigned int has_strides : 1;
  int32_t dimensions[8];
  uint32_t strides[8];
} Layout;

typedef struct {
  int element_type;
  Layout layout;
} RankedTensorType;

typedef struct {
  const char *tag;
  int event_type;
  uint64_t start_us, elapsed_us;
  size_t memory_before[3], memory_after[3];
  uint64_t metadata[2];
  int source;
} ProfiledEvent;

/* name, arguments; each gives a status, 0 when all is well */
#define FUNCTIONS(F)                                                                        \
  F(CreateEnvironment, (int, const void *, void **))                                        \
  F(CreateModelFromFile, (void *, const char *, void **))                                   \
  F(CreateOptions, (void **))                                                               \
  F(SetOptionsHardwareAccelerators, (void *, int))                                          \
  F(CreateOpaqueOptions, (const char *, void *, void (*)(void *), void **))                 \
  F(AddOpaqueOptions, (void *, void *))                                                     \
  F(CreateCompiledModel, (void *, void *, void *, void **))                                 \
  F(CompiledModelIsFullyAccelerated, (void *, bool *))                                      \
  F(GetModelSignature, (void *, size_t, void **))                                           \
  F(GetSignatureSubgraph, (void *, void **))                                                \
  F(GetNumSubgraphOps, (void *, size_t *))                                                  \
  F(GetNumSignatureInputs, (void *, size_t *))                                              \
  F(GetNumSignatureOutputs, (void *, size_t *))                                             \
  F(GetSignatureInputName, (void *, size_t, const char **))                                 \
  F(GetSignatureOutputName, (void *, size_t, const char **))                                \
  F(GetSignatureInputTensorByIndex, (void *, size_t, void **))                              \
  F(GetSignatureOutputTensorByIndex, (void *, size_t, void **))                             \
  F(GetRankedTensorType, (void *, RankedTensorType *))                                      \
  F(CreateTensorBufferFromHostMemory,                                                       \
    (const RankedTensorType *, void *, size_t, void (*)(void *), void **))                  \
  F(RunCompiledModel, (void *, size_t, size_t, void **, size_t, void **))                   \
  F(CompiledModelGetProfiler, (void *, void **))                                            \
  F(StartProfiler, (void *))                                                                \
  F(GetNumProfilerEvents, (void *, int *))                                                  \
  F(GetProfilerEvents, (void *, int, ProfiledEvent *))

#define POINTER(name, arguments) int(*name) arguments;
struct litert {
  FUNCTIONS(POINTER)
  void *compiled;
  void *inputs[MOST_TENSORS], *outputs[MOST_TENSORS];
};

#define CALL(name, ...)                                                                                     \
  do {                                                                                                      \
    int status = litert->name(__VA_ARGS__);                                                                 \
    if (status != 0) return fail(model, "LiteRt%s: %s", #name, meaning(status));                            \
  } while (0)

/* Of the statuses that a file can cause; the library exports no words for them. */
static const char *meaning(int status) {
  switch (status) {
    case 1: return "invalid argument";
    case 2: return "not enough memory";
    case 3: return "failure at run time";
    case 5: return "not supported";
    case 6: return "not found";
    case 500: return "the file cannot be read";
    case 501: return "this is no TFLite file, or it is damaged";
    case 504: return "it cannot be compiled";
    default: return "failure without a known reason";
  }
}

static int find_functions(struct model *model, struct litert *litert) {
  void *library = dlopen("libLiteRt.so", RTLD_NOW);
  if (library == NULL) return fail(model, "%s", dlerror());
#define FIND(name, arguments)                                           \
  *(void **)&litert->name = dlsym(library, "LiteRt" #name);             \
  if (litert->name == NULL) return fail(model, "%s", dlerror());
  FUNCTIONS(FIND)
  return 0;
}

/* The numbers of TFLite's types. */
static int element_of(int type, enum element *element) {
  switch (type) {
    case 1: *element = ELEMENT_FLOAT32; return 0;
    case 2: *element = ELEMENT_INT32; return 0;
    case 3: *element = ELEMENT_UINT8; return 0;
    case 4: *element = ELEMENT_INT64; return 0;
    case 6: *element = ELEMENT_BOOL; return 0;
    case 9: *element = ELEMENT_INT8; return 0;
    default: return -1;
  }
}

/* Memory for one tensor of the signature, and a buffer of the runtime's around it. */
static int make_buffer(struct model *model, struct litert *litert, void *tensor, struct tensor *ours, void **buffer) {
  RankedTensorType type;
  memset(&type, 0, sizeof type);
  CALL(GetRankedTensorType, tensor, &type);
  if (element_of(type.element_type, &ours->element))
    return fail(model, "its tensor '%s' has the TFLite type %d, which cannot be fed", ours->name, type.element_type);
  ours->bytes = element_size(ours->element);
  for (unsigned i = 0; i < type.layout.rank; i++) {
    if (type.layout.dimensions[i] < 0) type.layout.dimensions[i] = 1; /* the batch */
    ours->bytes *= (size_t)type.layout.dimensions[i];
  }
  if (fill(model, ours)) return -1;
  CALL(CreateTensorBufferFromHostMemory, &type, ours->data, ours->bytes, NULL, buffer);
  return 0;
}

static int make_buffers(struct model *model, struct litert *litert, void *signature) {
  const char *name = "";
  void *tensor = NULL;
  CALL(GetNumSignatureInputs, signature, &model->input_count);
  CALL(GetNumSignatureOutputs, signature, &model->output_count);
  if (check_counts(model)) return -1;
  for (size_t i = 0; i < model->input_count; i++) {
    CALL(GetSignatureInputName, signature, i, &name);
    strncpy(model->inputs[i].name, name, sizeof model->inputs[i].name - 1);
    CALL(GetSignatureInputTensorByIndex, signature, i, &tensor);
    if (make_buffer(model, litert, tensor, &model->inputs[i], &litert->inputs[i])) return -1;
  }
  for (size_t i = 0; i < model->output_count; i++) {
    CALL(GetSignatureOutputName, signature, i, &name);
    strncpy(model->outputs[i].name, name, sizeof model->outputs[i].name - 1);
    CALL(GetSignatureOutputTensorByIndex, signature, i, &tensor);
    if (make_buffer(model, litert, tensor, &model->outputs[i], &litert->outputs[i])) return -1;
  }
  return 0;
}

static int add_option(struct model *model, struct litert *litert, void *options, const char *kind, const char *toml) {
  void *opaque = NULL;
  CALL(CreateOpaqueOptions, kind, strdup(toml), free, &opaque);
  CALL(AddOpaqueOptions, options, opaque);
  return 0;
}

static int run(struct model *model) {
  struct litert *litert = model->handle;
  CALL(RunCompiledModel, litert->compiled, 0, model->input_count, litert->inputs, model->output_count, litert->outputs);
  return 0;
}

static int find_outputs(struct model *model) {
  (void)model; /* they were given their places */
  return 0;
}

static int compile(struct model *model, struct litert *litert, const char *path, int threads, bool profile) {
  void *environment = NULL, *file = NULL, *options = NULL, *signature = NULL, *graph = NULL;
  size_t nodes = 0;
  char toml[32];
  CALL(CreateEnvironment, 0, NULL, &environment);
  CALL(CreateModelFromFile, environment, path, &file);
  CALL(CreateOptions, &options);
  CALL(SetOptionsHardwareAccelerators, options, CPU);
  snprintf(toml, sizeof toml, "num_threads = %d\n", threads);
  if (add_option(model, litert, options, "xnnpack", toml)) return -1;
  if (profile && add_option(model, litert, options, "runtime_options_string", "enable_profiling = true\n")) return -1;
  CALL(CreateCompiledModel, environment, file, options, &litert->compiled);
  CALL(GetModelSignature, file, 0, &signature);
  CALL(GetSignatureSubgraph, signature, &graph);
  CALL(GetNumSubgraphOps, graph, &nodes);
  model->nodes = (long)nodes;
  return make_buffers(model, litert, signature);
}

/* How many nodes the built-in kernels run: the profiler sees each of them, and one node for each part of XNNPACK. */
static int count_builtin(struct model *model, struct litert *litert, const char *path, int *found) {
  void *profiler = NULL;
  int count = 0;
  if (compile(model, litert, path, 1, true)) return -1;
  CALL(CompiledModelGetProfiler, litert->compiled, &profiler);
  CALL(StartProfiler, profiler);
  if (run(model)) return -1;
  CALL(GetNumProfilerEvents, profiler, &count);
  ProfiledEvent *events = calloc((size_t)count + 1, sizeof *events);
  if (events == NULL) return fail(model, "no memory for %d events", count);
  CALL(GetProfilerEvents, profiler, count, events);
  for (int i = 0; i < count; i++)
    *found += events[i].event_type == OPERATOR_INVOKE_EVENT && strstr(events[i].tag, "Delegate") == NULL;
  free(events);
  return 0;
}

/* The share of the nodes that XNNPACK took, or below 0. In a process of its own, which leaves no trace in the memory of
 * the one that is measured; so it must come before the runtime has started a thread here. */
static double delegated_share(struct model *model, struct litert *litert, const char *path) {
  int ends[2], found = 0;
  double share = -1;
  if (pipe(ends)) return share;
  pid_t child = fork();
  if (child == 0) {
    int builtin = 0;
    if (count_builtin(model, litert, path, &builtin) == 0 && model->nodes > 0) {
      share = builtin < model->nodes ? 1 - (double)builtin / (double)model->nodes : 0;
      found = write(ends[1], &share, sizeof share) > 0;
    }
    _exit(!found);
  }
  close(ends[1]);
  if (child > 0) {
    if (read(ends[0], &share, sizeof share) != sizeof share) share = -1;
    waitpid(child, NULL, 0);
  }
  close(ends[0]);
  return share;
}

int litert_open(struct model *model, const char *path, int threads) {
  static struct litert litert;
  bool full = false;
  snprintf(model->runtime, sizeof model->runtime, "%s", LITERT);
  model->handle = &litert;
  model->run = run;
  model->find_outputs = find_outputs;
  if (find_functions(model, &litert)) return -1;
  double began = seconds(), share = delegated_share(model, &litert, path);
  model->aside_ms = (seconds() - began) * 1e3;
  if (compile(model, &litert, path, threads, false)) return -1;
  int status = litert.CompiledModelIsFullyAccelerated(litert.compiled, &full);
  model->delegate_share = status == 0 && full ? 1 : share;
  model->delegate = model->delegate_share == 0 ? "built-in kernels" : "XNNPACK";
  if (model->delegate_share == 0) model->delegate_share = 1; /* all of it is run by those */
  return 0;
}
