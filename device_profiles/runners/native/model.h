/* What the runner asks of a runtime: a model with its tensors, and a call that runs it once. */
#ifndef MODEL_H
#define MODEL_H

#include <stddef.h>
#include <stdint.h>

#define MOST_TENSORS 64
#define MOST_DIMENSIONS 8

/* The element types that can be fed or read. */
enum element { ELEMENT_FLOAT32, ELEMENT_INT8, ELEMENT_UINT8, ELEMENT_INT32, ELEMENT_INT64, ELEMENT_BOOL };

struct tensor {
  char name[128];
  enum element element;
  void *data;
  size_t bytes;
};

struct model {
  struct tensor inputs[MOST_TENSORS], outputs[MOST_TENSORS];
  size_t input_count, output_count;
  char runtime[64];      /* with version */
  const char *delegate;  /* what runs the graph, as the runtime calls it */
  double delegate_share; /* of the graph's nodes that it took, or below 0 where that is not known */
  long nodes;            /* of the graph, or below 0 where that is not known */
  double aside_ms;       /* of the time that opening took, what was not needed to run the model */
  void *handle;          /* the runtime's own */
  int (*run)(struct model *);          /* once; 0, or -1 with `error` set */
  int (*find_outputs)(struct model *); /* after a run: set `data` of the outputs; 0 or -1 */
  char error[512];
};

/* Load a file: 0, or -1 with `error` set to one line. threads: as many as the runtime may use. */
int litert_open(struct model *model, const char *path, int threads);
int onnxruntime_open(struct model *model, const char *path, int threads);

/* Set `error`; always -1. */
int fail(struct model *model, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Memory for a tensor's data, aligned for any runtime and filled with constant random values; 0 or -1. */
int fill(struct model *model, struct tensor *tensor);

/* That the tensors are not more than there is room for; 0 or -1. */
int check_counts(struct model *model);

size_t element_size(enum element element);

double seconds(void); /* of a clock that never goes back */

#endif
