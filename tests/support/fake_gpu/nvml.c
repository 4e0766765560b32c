/* A test double of libnvidia-ml.so.1: what our worker asks of it, for one GPU at 0000:01:00.0. No GPU.
 *
 * FAKE_NVML says how it behaves: "none" knows no GPU, "jetson" supports no figure, "hang" never answers how busy the GPU
 * is, "broken" has the load as an error and the rest.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Load;
enum { NOT_SUPPORTED = 3, NOT_FOUND = 6, GPU_IS_LOST = 15 };

static int initialised, gpu;

static int is(const char *wanted) {
  const char *mode = getenv("FAKE_NVML");
  return mode && !strcmp(mode, wanted);
}
static int asked(void *device) { return !initialised || device != &gpu ? NOT_FOUND : is("jetson") ? NOT_SUPPORTED : 0; }

int nvmlInit_v2(void) { return initialised = 1, 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *place, void **device) {
  *device = &gpu;
  return is("none") || strcmp(place, "0000:01:00.0") ? NOT_FOUND : 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  *device = &gpu;
  return is("none") || index ? NOT_FOUND : 0;
}
int nvmlDeviceGetUtilizationRates(void *device, Load *load) {
  while (is("hang")) pause();
  *load = (Load){37, 12};
  return is("broken") ? GPU_IS_LOST : asked(device);
}
int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
  *memory = (Memory){4000000000ull, 2500000000ull, 1500000000ull};
  return asked(device);
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) {
  *celsius = 61;
  return sensor ? NOT_SUPPORTED : asked(device);
}
