// The driver: a context on every device.
extern "C" {
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { *flags = 0; *active = 1; return 0; }
int cuCtxGetCurrent(void** context) { *context = (void*)1; return 0; }
int cuDeviceGet(int* device, int number) { *device = number; return 0; }
int cudaDeviceGetAttribute(int* value, int attribute, int device);  // the same attributes, under the same numbers
int cuDeviceGetAttribute(int* value, int attribute, int device) { return cudaDeviceGetAttribute(value, attribute, device); }
int cuFuncGetAttribute(int* value, int attribute, void*) { *value = attribute == 0 ? 1024 : 0; return 0; }  // 0: threads
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuGetErrorString(int, const char** text) { *text = "null CUDA"; return 0; }
}
