/* ONNX Runtime through its C API. The API is a table of functions whose order never changes, so that their places in it
 * are all that needs to be known of the header (onnxruntime_c_api.h). */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

enum place {
  GetErrorMessage = 2,
  CreateEnv = 3,
  DisableTelemetryEvents = 6,
  CreateSession = 7,
  CreateSessionOptions = 10,
  SetSessionLogSeverityLevel = 22,
  SetIntraOpNumThreads = 24,
  SetInterOpNumThreads = 25,
  SessionGetInputCount = 30,
  SessionGetOutputCount = 31,
  SessionGetInputTypeInfo = 33,
  SessionGetInputName = 36,
  SessionGetOutputName = 37,
  CreateTensorWithDataAsOrtValue = 49,
  GetTensorMutableData = 51,
  CastTypeInfoToTensorInfo = 55,
  GetTensorElementType = 60,
  GetDimensionsCount = 61,
  GetDimensions = 62,
  GetTensorShapeElementCount = 64,
  GetTensorTypeAndShape = 65,
  CreateCpuMemoryInfo = 69,
  GetAllocatorWithDefaultOptions = 78,
  AddSessionConfigEntry = 130,
  RunWithBinding = 133,
  CreateIoBinding = 134,
  BindInput = 136,
  BindOutputToDevice = 138,
  GetBoundOutputValues = 140
};

#define API_VERSION 12 /* of which all of the above are a part */
#define ARENA_ALLOCATOR 1
#define DEFAULT_MEMORY 0
#define ERRORS_ONLY 3

struct api_base {
  void *const *(*get)(uint32_t version);
  const char *(*version)(void);
};

struct onnxruntime {
  void *const *api;
  void *session, *binding, *memory, *allocator;
};

/* Every function gives a status, which is NULL when all is well. CALL leaves the function with the status' message. */
typedef void *(*function)();
#define CALL(name, ...)                                                                        \
  do {                                                                                         \
    void *status = ((function)ort->api[name])(__VA_ARGS__);                                    \
    if (status != NULL) return failed(model, ort, status);                                     \
  } while (0)

static int failed(struct model *model, struct onnxruntime *ort, void *status) {
  return fail(model, "%s", ((const char *(*)(void *))ort->api[GetErrorMessage])(status));
}

static int element_of(int type, enum element *element) {
  switch (type) {
    case 1: *element = ELEMENT_FLOAT32; return 0;
    case 2: *element = ELEMENT_UINT8; return 0;
    case 3: *element = ELEMENT_INT8; return 0;
    case 6: *element = ELEMENT_INT32; return 0;
    case 7: *element = ELEMENT_INT64; return 0;
    case 9: *element = ELEMENT_BOOL; return 0;
    default: return -1;
  }
}

static int bind_input(struct model *model, struct onnxruntime *ort, size_t index) {
  struct tensor *tensor = &model->inputs[index];
  void *info = NULL, *value = NULL;
  const void *shape = NULL;
  char *name = NULL;
  int type = 0;
  size_t rank = 0;
  int64_t sizes[MOST_DIMENSIONS];
  CALL(SessionGetInputName, ort->session, index, ort->allocator, &name);
  strncpy(tensor->name, name, sizeof tensor->name - 1);
  CALL(SessionGetInputTypeInfo, ort->session, index, &info);
  CALL(CastTypeInfoToTensorInfo, info, &shape);
  if (shape == NULL) return fail(model, "its input '%s' is no tensor", name);
  CALL(GetTensorElementType, shape, &type);
  if (element_of(type, &tensor->element))
    return fail(model, "its input '%s' has the ONNX type %d, which cannot be fed", name, type);
  CALL(GetDimensionsCount, shape, &rank);
  if (rank > MOST_DIMENSIONS) return fail(model, "its input '%s' has %zu dimensions", name, rank);
  CALL(GetDimensions, shape, sizes, rank);
  tensor->bytes = element_size(tensor->element);
  for (size_t i = 0; i < rank; i++) {
    if (sizes[i] < 0 && i == 0) sizes[i] = 1; /* the batch */
    if (sizes[i] < 0) return fail(model, "its input '%s' has no fixed size", name);
    tensor->bytes *= (size_t)sizes[i];
  }
  if (fill(model, tensor)) return -1;
  CALL(CreateTensorWithDataAsOrtValue, ort->memory, tensor->data, tensor->bytes, sizes, rank, type, &value);
  CALL(BindInput, ort->binding, name, value);
  return 0;
}

static int bind_output(struct model *model, struct onnxruntime *ort, size_t index) {
  char *name = NULL;
  CALL(SessionGetOutputName, ort->session, index, ort->allocator, &name);
  strncpy(model->outputs[index].name, name, sizeof model->outputs[index].name - 1);
  CALL(BindOutputToDevice, ort->binding, name, ort->memory);
  return 0;
}

static int run(struct model *model) {
  struct onnxruntime *ort = model->handle;
  CALL(RunWithBinding, ort->session, NULL, ort->binding);
  return 0;
}

static int find_outputs(struct model *model) {
  struct onnxruntime *ort = model->handle;
  void **values = NULL;
  size_t count = 0;
  CALL(GetBoundOutputValues, ort->binding, ort->allocator, &values, &count);
  for (size_t i = 0; i < count; i++) {
    struct tensor *tensor = &model->outputs[i];
    void *shape = NULL;
    int type = 0;
    size_t elements = 0;
    CALL(GetTensorTypeAndShape, values[i], &shape);
    CALL(GetTensorElementType, shape, &type);
    CALL(GetTensorShapeElementCount, shape, &elements);
    if (element_of(type, &tensor->element)) continue; /* it runs; what it gives cannot be read */
    CALL(GetTensorMutableData, values[i], &tensor->data);
    tensor->bytes = elements * element_size(tensor->element);
  }
  return 0;
}

/* With int8 sums that do not saturate on x86-64 without VNNI; there, 1.31 fails where layers share an int8 zero point,
 * and is told then. */
static int create_session(struct model *model, struct onnxruntime *ort, void *environment, void *options,
                          const char *path) {
  const char *exact[] = {"1", "0"};
  void *status = NULL;
  for (int i = 0; i < 2; i++) {
    CALL(AddSessionConfigEntry, options, "session.x64quantprecision", exact[i]);
    status = ((function)ort->api[CreateSession])(environment, path, options, &ort->session);
    if (status == NULL) return 0;
    model->delegate = "CPUExecutionProvider, int8 sums saturate";
  }
  return failed(model, ort, status);
}

static int open_session(struct model *model, struct onnxruntime *ort, const char *path, int threads) {
  void *environment = NULL, *options = NULL;
  CALL(CreateEnv, ERRORS_ONLY, "runner", &environment);
  CALL(DisableTelemetryEvents, environment);
  CALL(CreateSessionOptions, &options);
  CALL(SetIntraOpNumThreads, options, threads);
  CALL(SetInterOpNumThreads, options, 1);
  CALL(SetSessionLogSeverityLevel, options, ERRORS_ONLY);
  /* Threads that go on spinning between runs would slow the other files of an interleaved measurement. */
  CALL(AddSessionConfigEntry, options, "session.force_spinning_stop", "1");
  if (create_session(model, ort, environment, options, path)) return -1;
  CALL(CreateCpuMemoryInfo, ARENA_ALLOCATOR, DEFAULT_MEMORY, &ort->memory);
  CALL(GetAllocatorWithDefaultOptions, &ort->allocator);
  CALL(CreateIoBinding, ort->session, &ort->binding);
  CALL(SessionGetInputCount, ort->session, &model->input_count);
  CALL(SessionGetOutputCount, ort->session, &model->output_count);
  return check_counts(model);
}

int onnxruntime_open(struct model *model, const char *path, int threads) {
  static struct onnxruntime the;
  struct onnxruntime *ort = &the;
  setenv("ORT_DISABLE_TELEMETRY", "1", 1); /* it would keep files of its own and report to its maker what is run */
  void *library = dlopen("libonnxruntime.so.1", RTLD_NOW);
  if (library == NULL) return fail(model, "%s", dlerror());
  const struct api_base *(*base)(void) = (const struct api_base *(*)(void))dlsym(library, "OrtGetApiBase");
  if (base == NULL) return fail(model, "%s", dlerror());
  ort->api = base()->get(API_VERSION);
  if (ort->api == NULL) return fail(model, "ONNX Runtime %s has no C API of version %d", base()->version(), API_VERSION);
  model->handle = ort;
  snprintf(model->runtime, sizeof model->runtime, "onnxruntime %s", base()->version());
  model->delegate = "CPUExecutionProvider";
  model->delegate_share = 1;
  model->nodes = -1;
  model->run = run;
  model->find_outputs = find_outputs;
  if (open_session(model, ort, path, threads)) return -1;
  for (size_t i = 0; i < model->input_count; i++)
    if (bind_input(model, ort, i)) return -1;
  for (size_t i = 0; i < model->output_count; i++)
    if (bind_output(model, ort, i)) return -1;
  return 0;
}
