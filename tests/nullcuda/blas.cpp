// cuBLAS: a handle.
#include <cstddef>
#include <cstdlib>

extern "C" {
int cublasCreate_v2(void** handle) { *handle = calloc(1, 64); return 0; }
int cublasGetPointerMode_v2(void*, int* mode) { *mode = 0; return 0; }
int cublasGetMathMode(void*, int* mode) { *mode = 0; return 0; }
}
