// As much of LiteRT's C API (tflite/core/c/c_api.h and c_api_types.h) as the code in a report calls, with its
// signatures, as no package has the header. Instead of a network: Invoke prints the input and gives 0, 1, 2, ...
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

enum TfLiteStatus { kTfLiteOk = 0 };
struct TfLiteQuantizationParams {
  float scale;
  int32_t zero_point;
};
struct TfLiteTensor {
  const char* end;
  std::vector<unsigned char> held;
};
struct TfLiteModel {};
struct TfLiteInterpreterOptions;
struct TfLiteInterpreter {
  TfLiteTensor input{"TAKEN", {}}, output{"GIVEN", {}};
};

inline TfLiteModel* TfLiteModelCreateFromFile(const char*) { return new TfLiteModel; }
inline void TfLiteModelDelete(TfLiteModel* model) { delete model; }
inline TfLiteInterpreter* TfLiteInterpreterCreate(const TfLiteModel*, const TfLiteInterpreterOptions*) {
  return new TfLiteInterpreter;
}
inline void TfLiteInterpreterDelete(TfLiteInterpreter* interpreter) { delete interpreter; }
inline TfLiteStatus TfLiteInterpreterAllocateTensors(TfLiteInterpreter*) { return kTfLiteOk; }
inline TfLiteTensor* TfLiteInterpreterGetInputTensor(const TfLiteInterpreter* interpreter, int32_t) {
  return const_cast<TfLiteTensor*>(&interpreter->input);
}
inline const TfLiteTensor* TfLiteInterpreterGetOutputTensor(const TfLiteInterpreter* interpreter, int32_t) {
  return &interpreter->output;
}
inline TfLiteQuantizationParams TfLiteTensorQuantizationParams(const TfLiteTensor* tensor) {
  TfLiteQuantizationParams params{0, 0};
  std::sscanf(std::getenv(tensor->end), "%f %d", &params.scale, &params.zero_point);
  return params;
}
inline TfLiteStatus TfLiteTensorCopyFromBuffer(TfLiteTensor* tensor, const void* data, size_t size) {
  tensor->held.resize(size);
  std::memcpy(tensor->held.data(), data, size);
  return kTfLiteOk;
}
inline TfLiteStatus TfLiteInterpreterInvoke(TfLiteInterpreter* interpreter) {
  for (signed char byte : interpreter->input.held) std::printf("%d ", byte);
  std::printf("\n");
  return kTfLiteOk;
}
inline TfLiteStatus TfLiteTensorCopyToBuffer(const TfLiteTensor*, void* data, size_t size) {
  const bool integers = std::getenv("INTEGERS") != nullptr;
  for (size_t i = 0; i < size / (integers ? 1 : sizeof(float)); i++) {
    if (integers) static_cast<int8_t*>(data)[i] = static_cast<int8_t>(i);
    else static_cast<float*>(data)[i] = static_cast<float>(i);
  }
  return kTfLiteOk;
}
