/* Runs one model file and times it, as worker.py does and with the same requests, on a device without Python:
 *
 *   {"do": "load", "path": "net.onnx", "threads": 1, "core_mask": 15}
 *        {"init_ms": 8.1, "runtime": "onnxruntime 1.31.1", "delegation": {"name": ..., "share": 1, "nodes": 12}}
 *   {"do": "round", "min_runs": 8, "min_seconds": 0.25}  {"times_us": [812.30, ...], "peak_memory_mb": 71.2}
 *   {"do": "run", "input": "in.raw", "output": "out.raw"}  {"outputs": [{"name": "y", "bytes": 40}]}
 *
 * "run" reads the inputs, one after the other, from a file of raw numbers, and writes the outputs likewise. A request
 * that fails is answered {"error": "one line"}; the program ends when stdin does. */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include "model.h"

#define ALIGNMENT 64

static struct model model;
static int loaded;
static FILE *answers;

int fail(struct model *one, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(one->error, sizeof one->error, format, arguments);
  va_end(arguments);
  one->error[strcspn(one->error, "\r\n")] = '\0';
  return -1;
}

int check_counts(struct model *one) {
  return one->input_count > MOST_TENSORS || one->output_count > MOST_TENSORS
             ? fail(one, "it has %zu inputs and %zu outputs, and at most %d each can be held", one->input_count,
                    one->output_count, MOST_TENSORS)
             : 0;
}

size_t element_size(enum element element) {
  switch (element) {
    case ELEMENT_INT64: return 8;
    case ELEMENT_FLOAT32:
    case ELEMENT_INT32: return 4;
    default: return 1;
  }
}

/* xorshift64: constant, and random enough for numbers that are only multiplied. */
static uint64_t next_random(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

static float standard_normal(uint64_t *state) { /* Box and Muller */
  double u = ((double)(next_random(state) >> 11) + 1) / 9007199254740993.0, v = (double)(next_random(state) >> 11);
  return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v / 9007199254740992.0));
}

int fill(struct model *one, struct tensor *tensor) {
  uint64_t state = 88172645463325252ull;
  size_t room = (tensor->bytes / ALIGNMENT + 1) * ALIGNMENT;
  if (posix_memalign(&tensor->data, ALIGNMENT, room)) return fail(one, "no memory for %zu bytes", room);
  if (tensor->element == ELEMENT_FLOAT32)
    for (size_t i = 0; i < tensor->bytes / sizeof(float); i++) ((float *)tensor->data)[i] = standard_normal(&state);
  else
    for (size_t i = 0; i < tensor->bytes; i++)
      ((uint8_t *)tensor->data)[i] = (uint8_t)(next_random(&state) & (tensor->element == ELEMENT_BOOL ? 1 : 255));
  return 0;
}

/* The value of a key of a flat JSON object: where it begins, or NULL. Strings with the key in them do not mislead it. */
static const char *value_of(const char *json, const char *key) {
  size_t length = strlen(key);
  for (const char *at = json; (at = strchr(at, '"')) != NULL;) {
    const char *begin = ++at;
    while (*at != '\0' && *at != '"') at += *at == '\\' && at[1] != '\0' ? 2 : 1;
    if (*at == '\0') return NULL;
    const char *after = at + 1;
    while (isspace((unsigned char)*after)) after++;
    if (*after == ':' && (size_t)(at - begin) == length && strncmp(begin, key, length) == 0) {
      for (after++; isspace((unsigned char)*after);) after++;
      return after;
    }
    at++;
  }
  return NULL;
}

/* A string; of the escapes those that a path of ours can have. Returns 0 or -1. */
static int text_of(const char *json, const char *key, char *text, size_t room) {
  const char *at = value_of(json, key);
  size_t length = 0;
  if (at == NULL || *at++ != '"') return -1;
  for (; *at != '"'; at++) {
    if (*at == '\\') at++;
    if (*at == '\0' || length + 1 >= room) return -1;
    text[length++] = *at;
  }
  text[length] = '\0';
  return 0;
}

static double number_of(const char *json, const char *key, double otherwise) {
  const char *at = value_of(json, key);
  return at == NULL || strncmp(at, "null", 4) == 0 ? otherwise : strtod(at, NULL);
}

static void write_text(const char *text) {
  fputc('"', answers);
  for (; *text != '\0'; text++) {
    if (*text == '"' || *text == '\\') fputc('\\', answers);
    if ((unsigned char)*text >= ' ') fputc(*text, answers);
  }
  fputc('"', answers);
}

double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* The most resident memory so far in 10^6 bytes, or below 0. */
static double peak_memory_mb(void) {
  char line[256];
  double kilobytes = -1;
  FILE *file = fopen("/proc/self/status", "r");
  if (file == NULL) return -1;
  while (fgets(line, sizeof line, file) != NULL)
    if (sscanf(line, "VmHWM: %lf", &kilobytes) == 1) break;
  fclose(file);
  return kilobytes < 0 ? -1 : kilobytes * 1024 / 1e6;
}

/* Use these cores only; the threads that a runtime starts later inherit it. */
static int keep_to(const char *json) {
  const char *at = value_of(json, "core_mask");
  if (at == NULL || strncmp(at, "null", 4) == 0) return 0;
  unsigned long long mask = strtoull(at, NULL, 10);
  cpu_set_t cores;
  CPU_ZERO(&cores);
  for (int core = 0; core < 64; core++) {
    if ((mask >> core & 1) == 0) continue;
    if (core >= sysconf(_SC_NPROCESSORS_CONF))
      return fail(&model, "the core mask 0x%llx names core %d, which is not there", mask, core);
    CPU_SET(core, &cores);
  }
  if (sched_setaffinity(0, sizeof cores, &cores))
    return fail(&model, "the core mask 0x%llx cannot be set: %s", mask, strerror(errno));
  return 0;
}

static int load(const char *json) {
  char path[4096];
  int threads = (int)number_of(json, "threads", 1);
  if (loaded) return fail(&model, "a file is loaded already");
  if (text_of(json, "path", path, sizeof path)) return fail(&model, "the request names no path");
  const char *suffix = strrchr(path, '.');
  int (*open)(struct model *, const char *, int) = NULL;
  if (suffix != NULL && strcasecmp(suffix, ".onnx") == 0) open = onnxruntime_open;
  if (suffix != NULL && strcasecmp(suffix, ".tflite") == 0) open = litert_open;
  if (open == NULL) return fail(&model, "only .onnx and .tflite files can be run");
  if (keep_to(json)) return -1;
  double began = seconds();
  int status = open(&model, path, threads);
  double init_ms = (seconds() - began) * 1e3 - model.aside_ms;
  if (status == 0) status = model.run(&model); /* a file may load and yet not run: better to know before the first round */
  if (status) {
    char why[sizeof model.error];
    memcpy(why, model.error, sizeof why);
    return fail(&model, "%s cannot run it: %s", model.runtime, why);
  }
  loaded = 1;
  fprintf(answers, "{\"init_ms\": %.3f, \"runtime\": ", init_ms);
  write_text(model.runtime);
  fprintf(answers, ", \"delegation\": {\"name\": ");
  write_text(model.delegate);
  if (model.delegate_share >= 0) fprintf(answers, ", \"share\": %.6f", model.delegate_share);
  if (model.nodes >= 0) fprintf(answers, ", \"nodes\": %ld", model.nodes);
  fprintf(answers, "}}\n");
  return 0;
}

static int time_round(const char *json) {
  int min_runs = (int)number_of(json, "min_runs", 1);
  double min_seconds = number_of(json, "min_seconds", 0);
  size_t count = 0, room = 1024;
  double *times = malloc(room * sizeof *times);
  int status = times == NULL ? fail(&model, "no memory for the times") : model.run(&model); /* one that is not timed */
  double end = seconds() + min_seconds;
  while (status == 0 && (count < (size_t)min_runs || seconds() < end)) {
    if (count == room) {
      double *more = realloc(times, (room *= 2) * sizeof *times);
      if (more == NULL) status = fail(&model, "no memory for the times");
      if (more == NULL) break;
      times = more;
    }
    double began = seconds();
    status = model.run(&model);
    times[count++] = seconds() - began;
  }
  if (status == 0) {
    fprintf(answers, "{\"times_us\": [");
    for (size_t i = 0; i < count; i++) fprintf(answers, i ? ", %.2f" : "%.2f", times[i] * 1e6);
    double peak = peak_memory_mb();
    if (peak < 0) fprintf(answers, "], \"peak_memory_mb\": null}\n");
    else fprintf(answers, "], \"peak_memory_mb\": %.3f}\n", peak);
  }
  free(times);
  return status;
}

static int copy_tensors(struct tensor *tensors, size_t count, const char *path, const char *mode) {
  FILE *file = fopen(path, mode);
  if (file == NULL) return fail(&model, "%s: %s", path, strerror(errno));
  size_t done = 0;
  for (; done < count; done++) {
    struct tensor *one = &tensors[done];
    size_t bytes = *mode == 'r' ? fread(one->data, 1, one->bytes, file) : fwrite(one->data, 1, one->bytes, file);
    if (bytes != one->bytes) break;
  }
  if (*mode == 'r' && done == count && fgetc(file) != EOF) done = count + 1;
  if (fclose(file) || done != count) return fail(&model, "%s does not hold what the model's tensors do", path);
  return 0;
}

static int run_once(const char *json) {
  char input[4096], output[4096];
  if (text_of(json, "input", input, sizeof input) || text_of(json, "output", output, sizeof output))
    return fail(&model, "the request names no input and output");
  if (copy_tensors(model.inputs, model.input_count, input, "rb") || model.run(&model) || model.find_outputs(&model) ||
      copy_tensors(model.outputs, model.output_count, output, "wb"))
    return -1;
  fprintf(answers, "{\"outputs\": [");
  for (size_t i = 0; i < model.output_count; i++) {
    fprintf(answers, i ? ", {\"name\": " : "{\"name\": ");
    write_text(model.outputs[i].name);
    fprintf(answers, ", \"bytes\": %zu}", model.outputs[i].bytes);
  }
  fprintf(answers, "]}\n");
  return 0;
}

static int answer(const char *json) {
  char action[16];
  if (text_of(json, "do", action, sizeof action)) return fail(&model, "the request does not say what to do");
  if (strcmp(action, "load") == 0) return load(json);
  if (strcmp(action, "round") == 0) return loaded ? time_round(json) : fail(&model, "no file is loaded yet");
  if (strcmp(action, "run") == 0) return loaded ? run_once(json) : fail(&model, "no file is loaded yet");
  return fail(&model, "unknown request '%s'", action);
}

int main(void) {
  /* Answers get a descriptor of their own, so that what a runtime prints to stdout cannot mix with them. */
  answers = fdopen(dup(1), "w");
  if (answers == NULL || dup2(2, 1) < 0) return 1;
  char *line = NULL;
  size_t room = 0;
  while (getline(&line, &room, stdin) > 0) {
    if (answer(line)) {
      fprintf(answers, "{\"error\": ");
      write_text(model.error);
      fprintf(answers, "}\n");
    }
    fflush(answers);
  }
  return 0;
}
