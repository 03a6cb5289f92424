// What the stubs count.
#include <atomic>
extern "C" std::atomic<long> nullcuda_launches, nullcuda_waits, nullcuda_pageable, nullcuda_uploaded;
// The stream that a graph is captured from; meanwhile what waits is an error, as it is on a device.
extern "C" std::atomic<void*> nullcuda_capturing;
