// cuBLASLt: descriptors, and an algorithm for every product.
#include <cstddef>
#include <cstdlib>

static int make(void** made) { *made = calloc(1, 64); return 0; }

extern "C" {
int cublasLtCreate(void** handle) { return make(handle); }
int cublasLtMatmulDescCreate(void** made) { return make(made); }
int cublasLtMatrixLayoutCreate(void** made) { return make(made); }
int cublasLtMatmulPreferenceCreate(void** made) { return make(made); }
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void*, int* found) { *found = 1; return 0; }
size_t cublasLtGetVersion() { return 130101; }
}
