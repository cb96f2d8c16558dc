/* A fake libnvidia-ml.so.1: the part of NVIDIA's management library that the exporter uses, without a GPU.
 *
 * Environment, read when the library is loaded:
 *   FAKE_NVML_GPUS     number of GPUs, 2 by default
 *   FAKE_NVML_CALL_US  how long every call about a GPU takes, in microseconds of sleep; 0 by default
 *   FAKE_NVML_STATE    a file of KEY=VALUE lines, read anew at every call, so that a test can change things meanwhile
 *
 * Keys of the state file:
 *   driver=unloaded     every call fails as without the driver; after that, only nvmlInit works again
 *   hang_seconds=N      every call about a GPU takes that long
 *   gpuI.NAME=VALUE     a reading of GPU I (the names are in the calls below), or instead of a value:
 *   gpuI.NAME=unsupported | error:CODE
 *   gpuI.lost=1         every call about GPU I fails with GPU_IS_LOST
 *   gpuI.handle=error:CODE
 *
 * Compiled with -DWITHOUT_MEMORY_V2 it lacks nvmlDeviceGetMemoryInfo_v2, like drivers before R510.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, ARGUMENT_VERSION_MISMATCH = 25,
};

typedef unsigned long long u64;
typedef struct { unsigned index; } Gpu;
typedef Gpu *Device;
typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } MemoryV2;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct {
    char busIdLegacy[16];
    unsigned domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} PciInfo;
typedef struct { unsigned version, sensor; int temperature; } TemperatureV1;

#define MAX_GPUS 64
static Gpu gpus[MAX_GPUS];
static int initialized;

static unsigned gpu_count(void) {
    const char *text = getenv("FAKE_NVML_GPUS");
    unsigned count = text ? (unsigned)atoi(text) : 2;
    return count < MAX_GPUS ? count : MAX_GPUS;
}

/* The value of `key` in the state file, in a static buffer; NULL if it has none. */
static const char *state(const char *key) {
    static char line[256];
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return NULL;
    char *found = NULL;
    while (!found && fgets(line, sizeof line, file)) {
        char *equals = strchr(line, '=');
        if (!equals) continue;
        *equals = 0;
        equals[1 + strcspn(equals + 1, "\r\n")] = 0;
        if (strcmp(line, key) == 0) found = equals + 1;
    }
    fclose(file);
    return found;
}

static int driver_status(void) {
    const char *driver = state("driver");
    if (driver && strcmp(driver, "unloaded") == 0) {
        initialized = 0;
        return DRIVER_NOT_LOADED;
    }
    return initialized ? SUCCESS : UNINITIALIZED;
}

/* A return code written as "unsupported" or "error:CODE"; SUCCESS for anything else. */
static int code_of(const char *text) {
    if (text && strcmp(text, "unsupported") == 0) return NOT_SUPPORTED;
    if (text && strncmp(text, "error:", 6) == 0) return atoi(text + 6);
    return SUCCESS;
}

static int device_status(Device device) {
    int code = driver_status();
    if (code) return code;
    const char *call_us = getenv("FAKE_NVML_CALL_US"), *hang = state("hang_seconds");
    if (hang) sleep((unsigned)atoi(hang));
    if (call_us) usleep((useconds_t)atoi(call_us));
    char key[64];
    snprintf(key, sizeof key, "gpu%u.lost", device->index);
    const char *lost = state(key);
    return lost && atoi(lost) ? GPU_IS_LOST : SUCCESS;
}

/* The reading `name` of a GPU: what the state file says, else `normal`. */
static int reading(Device device, const char *name, u64 normal, u64 *value) {
    char key[64];
    snprintf(key, sizeof key, "gpu%u.%s", device->index, name);
    const char *text = state(key);
    *value = text ? strtoull(text, NULL, 10) : normal;
    return code_of(text);
}

static int reading32(Device device, const char *name, unsigned normal, unsigned *value) {
    int code = device_status(device);
    u64 wide = 0;
    if (!code) code = reading(device, name, normal, &wide);
    *value = (unsigned)wide;
    return code;
}

static int text(char *buffer, unsigned size, const char *value) {
    return snprintf(buffer, size, "%s", value) < (int)size ? SUCCESS : INSUFFICIENT_SIZE;
}

/* The library and the driver */

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    initialized = 1;
    return driver_status();
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) {
    int code = driver_status();
    initialized = 0;
    return code;
}
const char *nvmlErrorString(int code) {
    static char message[32];
    snprintf(message, sizeof message, "fake error %d", code);
    return message;
}
int nvmlSystemGetDriverVersion(char *buffer, unsigned size) {
    int code = driver_status();
    return code ? code : text(buffer, size, "550.54.15");
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = 12040;
    return driver_status();
}
int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = gpu_count();
    return driver_status();
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    int code = driver_status();
    if (code) return code;
    if (index >= gpu_count()) return INVALID_ARGUMENT;
    gpus[index].index = index;
    *device = &gpus[index];
    code = device_status(*device);
    u64 unused;
    return code ? code : reading(*device, "handle", 0, &unused);
}

/* One GPU */

int nvmlDeviceGetName(Device device, char *buffer, unsigned size) {
    int code = device_status(device);
    return code ? code : text(buffer, size, "NVIDIA GeForce RTX 3090");
}
int nvmlDeviceGetUUID(Device device, char *buffer, unsigned size) {
    char uuid[64];
    snprintf(uuid, sizeof uuid, "GPU-00000000-0000-0000-0000-%012u", device->index);
    int code = device_status(device);
    return code ? code : text(buffer, size, uuid);
}
int nvmlDeviceGetPciInfo_v3(Device device, PciInfo *pci) {
    memset(pci, 0, sizeof *pci);
    pci->bus = device->index + 1;
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "0000:%02X:00.0", pci->bus);
    snprintf(pci->busId, sizeof pci->busId, "00000000:%02X:00.0", pci->bus);
    return device_status(device);
}
int nvmlDeviceGetUtilizationRates(Device device, Utilization *rates) {
    int code = reading32(device, "utilization", 90, &rates->gpu);
    u64 memory = 0;
    if (!code) code = reading(device, "memory_utilization", 40, &memory);
    rates->memory = (unsigned)memory;
    return code;
}

/* gpuI.memory=unsupported is what machines with unified memory answer. */
static int memory_readings(Device device, MemoryV2 *memory) {
    u64 unused;
    int code = device_status(device);
    if (!code) code = reading(device, "memory", 0, &unused);
    if (!code) code = reading(device, "memory_total", 24ull << 30, &memory->total);
    if (!code) code = reading(device, "memory_reserved", 512ull << 20, &memory->reserved);
    if (!code) code = reading(device, "memory_used", 8ull << 30, &memory->used);
    memory->free = memory->total - memory->reserved - memory->used;
    return code;
}
int nvmlDeviceGetMemoryInfo(Device device, Memory *memory) {
    MemoryV2 readings;
    int code = memory_readings(device, &readings);
    memory->total = readings.total;
    memory->free = readings.free;
    memory->used = readings.used + readings.reserved;
    return code;
}
#ifndef WITHOUT_MEMORY_V2
int nvmlDeviceGetMemoryInfo_v2(Device device, MemoryV2 *memory) {
    if (memory->version != (sizeof *memory | 2u << 24)) return ARGUMENT_VERSION_MISMATCH;
    return memory_readings(device, memory);
}
#endif
int nvmlDeviceGetPowerUsage(Device device, unsigned *milliwatts) {
    return reading32(device, "power_milliwatts", 285000, milliwatts);
}
int nvmlDeviceGetEnforcedPowerLimit(Device device, unsigned *milliwatts) {
    return reading32(device, "power_limit_milliwatts", 350000, milliwatts);
}
int nvmlDeviceGetTotalEnergyConsumption(Device device, u64 *millijoules) {
    int code = device_status(device);
    return code ? code : reading(device, "energy_millijoules", 123456789, millijoules);
}
int nvmlDeviceGetTemperature(Device device, unsigned sensor, unsigned *celsius) {
    (void)sensor;
    return reading32(device, "temperature", 66, celsius);
}
int nvmlDeviceGetTemperatureV(Device device, TemperatureV1 *temperature) {
    if (temperature->version != (sizeof *temperature | 1u << 24)) return ARGUMENT_VERSION_MISMATCH;
    unsigned celsius;
    int code = reading32(device, "temperature", 66, &celsius);
    temperature->temperature = (int)celsius;
    return code;
}
