/* A fake libnvidia-ml.so.1: the part of NVIDIA's management library that the exporter uses, without a GPU.
 *
 * Environment, read when the library is first called:
 *   FAKE_NVML_PROFILE   a file of KEY=VALUE lines: the machine (profiles/ has some); two RTX 3090 without
 *   FAKE_NVML_GPUS      number of GPUs, whatever the profile says
 *   FAKE_NVML_CALL_US   how long every call about a GPU takes, in microseconds of sleep; 0 by default
 *   FAKE_NVML_STATE     a file of KEY=VALUE lines that go before those of the profile; looked at anew at every call, so
 *                       that a test can change things meanwhile
 *   FAKE_NVML_COUNTERS  a file that tells what was called, as numbers of 8 bytes: all calls, calls that a faithful
 *                       library would block in (PCIe throughput), calls while another one was under way, and how often
 *                       the library is open now
 *
 * Keys:
 *   gpus=N, driver_version=TEXT
 *   driver=unloaded | mismatch   every call fails as without the driver, or after an upgrade; then only nvmlInit works
 *   init=error:CODE              opening the driver fails
 *   hang_seconds=N               every call about a GPU takes that long, or until the line is gone
 *   events=NUMBER/GPU/XID;…      XIDs, in order of ascending numbers; each is told once
 *   gpuI.NAME=VALUE              a reading of GPU I (the names are in the calls below), or instead of a value:
 *   gpuI.NAME=unsupported | error:CODE
 *   gpuI.field.N=VALUE           a value for nvmlDeviceGetFieldValues, u32:VALUE for one of 32 bits; others are unsupported
 *   gpuI.samples=P,P,…           percentages that the utilisation samples repeat, six a second
 *   gpuI.processes=PID:BYTES,…   also graphics_processes; BYTES may be na. process_utilization=PID:PERCENT,… likewise
 *   gpuI.mig_mode=1, gpuI.mig_instances=GI.CI,-,GI.CI    "-" is a place without an instance
 *   gpuI.migK.NAME=VALUE         a reading of the instance at place K
 *   gpuI.lost=1                  every call about GPU I fails with GPU_IS_LOST
 *   gpuI.handle=error:CODE
 * "gpu*" and "mig*" stand for all of them.
 *
 * Compiled with -DOLD_DRIVER it lacks what came after R470, and field values; with -DNEW_DRIVER what CUDA 14 drops.
 */
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15, LIB_RM_VERSION_MISMATCH = 18, ARGUMENT_VERSION_MISMATCH = 25,
};
enum { TYPE_UNSIGNED_INT = 1, TYPE_UNSIGNED_LONG_LONG = 3 };
enum { EVENT_XID = 8 };
enum { MAX_GPUS = 64, MAX_INSTANCES = 8, NO_INSTANCE = -1 };

typedef unsigned long long u64;
typedef struct { unsigned index; int instance; } Gpu;
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
typedef union { double d; unsigned ui; u64 ull; } Value;
typedef struct { unsigned fieldId, scopeId; long long timestamp, latencyUsec; unsigned valueType, nvmlReturn; Value value; } FieldValue;
typedef struct { u64 timeStamp; Value value; } Sample;
typedef struct { unsigned pid; u64 usedGpuMemory; unsigned gpuInstanceId, computeInstanceId; } ProcessInfo;
typedef struct { unsigned pid; u64 timeStamp; unsigned sm, memory, encoder, decoder; } ProcessUtilization;
typedef struct { Device device; u64 type, data; unsigned gpuInstanceId, computeInstanceId; } EventData;

static Gpu gpus[MAX_GPUS], instances[MAX_GPUS][MAX_INSTANCES];
static int references;

/* What was called */

static u64 uncounted[4];
static u64 *counters = uncounted;
static atomic_int calls_under_way;

static void open_counters(void) {
    const char *path = getenv("FAKE_NVML_COUNTERS");
    int fd = path && counters == uncounted ? open(path, O_RDWR | O_CREAT, 0600) : -1;
    if (fd < 0) return;
    if (ftruncate(fd, sizeof uncounted) == 0)
        counters = mmap(NULL, sizeof uncounted, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
}
static int enter(void) {
    open_counters();
    counters[0]++;
    if (atomic_fetch_add(&calls_under_way, 1)) counters[2]++;
    return 0;
}
static void leave(int *unused) {
    (void)unused;
    counters[3] = (u64)references;
    atomic_fetch_sub(&calls_under_way, 1);
}
#define CALL __attribute__((cleanup(leave), unused)) int this_call = enter()

/* The machine, and what is wrong with it */

typedef struct { char *text; char *lines[1024]; int count; struct stat status; } Lines;
static Lines profile, state_lines;

static void load(Lines *file, const char *path) {
    struct stat status;
    if (!path || stat(path, &status) != 0) { file->count = 0; return; }
    if (file->text && status.st_ino == file->status.st_ino && status.st_size == file->status.st_size
        && memcmp(&status.st_mtim, &file->status.st_mtim, sizeof status.st_mtim) == 0) return;
    FILE *stream = fopen(path, "r");
    if (!stream) return;
    char *text = calloc(1, (size_t)status.st_size + 1);
    size_t length = fread(text, 1, (size_t)status.st_size, stream);
    fclose(stream);
    text[length] = 0;
    file->count = 0;
    for (char *line = strtok(text, "\r\n"); line && file->count < 1024; line = strtok(NULL, "\r\n"))
        if (line[0] != '#' && strchr(line, '=')) file->lines[file->count++] = line;
    free(file->text);
    file->text = text;
    file->status = status;
}

/* Whether a line's key is this one. "*" in the line stands for a number. */
static const char *match(const char *line, const char *key) {
    for (; *line != '='; line++) {
        if (*line == '*') {
            if (*key < '0' || *key > '9') return NULL;
            while (*key >= '0' && *key <= '9') key++;
        } else if (*line != *key++) return NULL;
    }
    return *key ? NULL : line + 1;
}

static const char *in(const Lines *file, const char *key) {
    const char *exact = NULL, *any = NULL, *found;
    for (int i = 0; i < file->count; i++)
        if ((found = match(file->lines[i], key))) {
            if (memchr(file->lines[i], '*', (size_t)(found - file->lines[i]))) any = found;
            else exact = found;
        }
    return exact ? exact : any;
}

/* The value of a key, NULL if it has none. */
static const char *state(const char *key) {
    load(&state_lines, getenv("FAKE_NVML_STATE"));
    if (!profile.text) load(&profile, getenv("FAKE_NVML_PROFILE"));
    const char *found = in(&state_lines, key);
    return found ? found : in(&profile, key);
}
static const char *state_of(Device device, const char *name) {
    char key[128];
    if (device->instance == NO_INSTANCE) snprintf(key, sizeof key, "gpu%u.%s", device->index, name);
    else snprintf(key, sizeof key, "gpu%u.mig%d.%s", device->index, device->instance, name);
    return state(key);
}

static unsigned gpu_count(void) {
    const char *text = getenv("FAKE_NVML_GPUS");
    if (!text) text = state("gpus");
    unsigned count = text ? (unsigned)atoi(text) : 2;
    return count < MAX_GPUS ? count : MAX_GPUS;
}

static int driver_status(void) {
    const char *driver = state("driver");
    if (driver) references = 0;
    if (driver) return strcmp(driver, "mismatch") == 0 ? LIB_RM_VERSION_MISMATCH : DRIVER_NOT_LOADED;
    return references ? SUCCESS : UNINITIALIZED;
}

/* A return code written as "unsupported" or "error:CODE"; SUCCESS for anything else. */
static int code_of(const char *text) {
    if (text && strcmp(text, "unsupported") == 0) return NOT_SUPPORTED;
    if (text && strncmp(text, "error:", 6) == 0) return atoi(text + 6);
    return SUCCESS;
}

static void hang(void) {
    const char *seconds;
    for (int passed = 0; (seconds = state("hang_seconds")) && passed < atoi(seconds) * 50; passed++) usleep(20000);
}

/* The numbers of the MIG instance at a place; 0 where there is none. */
static int instance_at(unsigned gpu, int place, unsigned *gpu_instance, unsigned *compute_instance) {
    char key[64];
    snprintf(key, sizeof key, "gpu%u.mig_instances", gpu);
    const char *text = state(key);
    for (; text && place; place--) {
        text = strchr(text, ',');
        if (text) text++;
    }
    return text && sscanf(text, "%u.%u", gpu_instance, compute_instance) == 2;
}

static int device_status(Device device) {
    int code = driver_status();
    if (code) return code;
    const char *call_us = getenv("FAKE_NVML_CALL_US");
    hang();
    if (call_us) usleep((useconds_t)atoi(call_us));
    char key[64];
    snprintf(key, sizeof key, "gpu%u.lost", device->index);
    const char *lost = state(key);
    if (lost && atoi(lost)) return GPU_IS_LOST;
    unsigned unused;
    if (device->instance != NO_INSTANCE && !instance_at(device->index, device->instance, &unused, &unused))
        return INVALID_ARGUMENT;
    return SUCCESS;
}

/* The reading `name` of a GPU: what the files say, else `normal`. An instance has only what they say, and memory. */
static int reading(Device device, const char *name, u64 normal, u64 *value) {
    const char *text = state_of(device, name);
    if (!text && device->instance != NO_INSTANCE && strncmp(name, "memory", 6) != 0) return NOT_SUPPORTED;
    *value = text ? strtoull(text, NULL, 0) : normal;
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

static u64 now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (u64)now.tv_sec * 1000000 + (u64)now.tv_nsec / 1000;
}

/* The library and the driver */

int nvmlInitWithFlags(unsigned flags) {
    CALL;
    (void)flags;
    int code = code_of(state("init"));
    if (code) return code;
    references++;
    return driver_status();
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) {
    CALL;
    int code = driver_status();
    if (!code) references--;
    return code;
}
const char *nvmlErrorString(int code) {
    static char message[32];
    snprintf(message, sizeof message, "fake error %d", code);
    return message;
}
int nvmlSystemGetDriverVersion(char *buffer, unsigned size) {
    CALL;
    int code = driver_status();
    const char *version = state("driver_version");
    return code ? code : text(buffer, size, version ? version : "550.54.15");
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    CALL;
    *version = 12040;
    return driver_status();
}
int nvmlDeviceGetCount_v2(unsigned *count) {
    CALL;
    *count = gpu_count();
    return driver_status();
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    CALL;
    int code = driver_status();
    if (code) return code;
    if (index >= gpu_count()) return INVALID_ARGUMENT;
    gpus[index] = (Gpu){index, NO_INSTANCE};
    *device = &gpus[index];
    code = device_status(*device);
    u64 unused;
    return code ? code : reading(*device, "handle", 0, &unused);
}

/* One GPU */

int nvmlDeviceGetName(Device device, char *buffer, unsigned size) {
    CALL;
    int code = device_status(device);
    const char *name = state_of(device, "name");
    return code ? code : text(buffer, size, name ? name : "NVIDIA GeForce RTX 3090");
}
int nvmlDeviceGetUUID(Device device, char *buffer, unsigned size) {
    CALL;
    char uuid[64];
    if (device->instance == NO_INSTANCE) snprintf(uuid, sizeof uuid, "GPU-00000000-0000-0000-0000-%012u", device->index);
    else snprintf(uuid, sizeof uuid, "MIG-00000000-0000-0000-%04d-%012u", device->instance, device->index);
    int code = device_status(device);
    return code ? code : text(buffer, size, uuid);
}
int nvmlDeviceGetPciInfo_v3(Device device, PciInfo *pci) {
    CALL;
    memset(pci, 0, sizeof *pci);
    pci->bus = device->index + 1;
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "0000:%02X:00.0", pci->bus);
    snprintf(pci->busId, sizeof pci->busId, "00000000:%02X:00.0", pci->bus);
    return device_status(device);
}
int nvmlDeviceGetUtilizationRates(Device device, Utilization *rates) {
    CALL;
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
    CALL;
    MemoryV2 readings;
    int code = memory_readings(device, &readings);
    if (code) return code;
    memory->total = readings.total;
    memory->free = readings.free;
    memory->used = readings.used + readings.reserved;
    return SUCCESS;
}
int nvmlDeviceGetPowerUsage(Device device, unsigned *milliwatts) {
    CALL;
    return reading32(device, "power_milliwatts", 285000, milliwatts);
}
int nvmlDeviceGetEnforcedPowerLimit(Device device, unsigned *milliwatts) {
    CALL;
    return reading32(device, "power_limit_milliwatts", 350000, milliwatts);
}
int nvmlDeviceGetTotalEnergyConsumption(Device device, u64 *millijoules) {
    CALL;
    int code = device_status(device);
    return code ? code : reading(device, "energy_millijoules", 123456789, millijoules);
}
int nvmlDeviceGetClockInfo(Device device, unsigned type, unsigned *megahertz) {
    CALL;
    static const char *const names[] = {"clock_graphics", "clock_sm", "clock_memory", "clock_video"};
    static const unsigned normal[] = {1695, 1695, 9501, 1545};
    return type < 4 ? reading32(device, names[type], normal[type], megahertz) : INVALID_ARGUMENT;
}
int nvmlDeviceGetFanSpeed(Device device, unsigned *percent) { CALL; return reading32(device, "fan", 55, percent); }
int nvmlDeviceGetPerformanceState(Device device, unsigned *number) { CALL; return reading32(device, "performance_state", 2, number); }
int nvmlDeviceGetCurrPcieLinkGeneration(Device device, unsigned *number) { CALL; return reading32(device, "pcie_generation", 4, number); }
int nvmlDeviceGetCurrPcieLinkWidth(Device device, unsigned *lanes) { CALL; return reading32(device, "pcie_width", 16, lanes); }
int nvmlDeviceGetEncoderUtilization(Device device, unsigned *percent, unsigned *period_us) {
    CALL;
    *period_us = 167000;
    return reading32(device, "encoder", 0, percent);
}
int nvmlDeviceGetDecoderUtilization(Device device, unsigned *percent, unsigned *period_us) {
    CALL;
    *period_us = 167000;
    return reading32(device, "decoder", 0, percent);
}
int nvmlDeviceGetPcieThroughput(Device device, unsigned direction, unsigned *kilobytes) {
    CALL;
    (void)direction;
    counters[1]++;
    usleep(20000);
    return reading32(device, "pcie_throughput", 1000, kilobytes);
}
static int event_reasons(Device device, const char *name, u64 normal, u64 *reasons) {
    int code = device_status(device);
    return code ? code : reading(device, name, normal, reasons);
}
int nvmlDeviceGetTotalEccErrors(Device device, unsigned type, unsigned counter, u64 *count) {
    CALL;
    if (counter != 0) return NOT_SUPPORTED;
    int code = device_status(device);
    return code ? code : reading(device, type ? "ecc_uncorrected" : "ecc_corrected", 0, count);
}
int nvmlDeviceGetRemappedRows(Device device, unsigned *correctable, unsigned *uncorrectable, unsigned *pending, unsigned *failure) {
    CALL;
    *pending = *failure = 0;
    int code = reading32(device, "remapped_correctable", 0, correctable);
    return code ? code : reading32(device, "remapped_uncorrectable", 0, uncorrectable);
}

/* Samples, six a second as on recent GPUs. The size that is told is that of the buffer; none is NOT_FOUND. */

enum { SAMPLE_US = 166667, BUFFER = 100 };

static int nth_percent(const char *list, u64 number) {
    int percents[64], count = 0;
    for (const char *at = list; at && count < 64; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) percents[count++] = atoi(at);
    return percents[number % (u64)count];
}

int nvmlDeviceGetSamples(Device device, unsigned type, u64 since, unsigned *value_type, unsigned *count, Sample *samples) {
    CALL;
    u64 unused;
    int code = device_status(device);
    const char *list = state_of(device, "samples"), *normal = state_of(device, "utilization");
    if (!code) code = list ? code_of(list) : reading(device, "utilization", 0, &unused);
    if (!code && type != 1) code = NOT_SUPPORTED;
    if (code) return code;
    *value_type = TYPE_UNSIGNED_INT;
    u64 last = now_us() / SAMPLE_US, first = since / SAMPLE_US + 1;
    if (last - first >= BUFFER && first < last) first = last - BUFFER + 1;
    if (first > last) return NOT_FOUND;
    if (!samples) { *count = BUFFER; return SUCCESS; }
    unsigned room = *count, filled = 0;
    for (u64 number = first; number <= last && filled < room; number++, filled++) {
        samples[filled].timeStamp = number * SAMPLE_US;
        samples[filled].value.ui = (unsigned)nth_percent(list ? list : normal ? normal : "90", number);
    }
    *count = filled;
    return SUCCESS;
}

/* Processes */

static unsigned length(const char *list) {
    unsigned count = list && *list ? 1 : 0;
    for (; list && *list; list++) count += *list == ',';
    return count;
}
static int process_list(Device device, const char *name, unsigned *count, ProcessInfo *processes) {
    int code = device_status(device);
    const char *list = state_of(device, name);
    if (!code) code = code_of(list);
    if (code) return code;
    unsigned room = *count;
    *count = length(list);
    if (*count > room) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < *count; i++, list = strchr(list, ',') + 1) {
        const char *bytes = strchr(list, ':') + 1;
        u64 used = strncmp(bytes, "na", 2) == 0 ? ~0ull : strtoull(bytes, NULL, 10);
        processes[i] = (ProcessInfo){(unsigned)atoi(list), used, ~0u, ~0u};
    }
    return SUCCESS;
}
int nvmlDeviceGetProcessUtilization(Device device, ProcessUtilization *samples, unsigned *count, u64 since) {
    CALL;
    int code = device_status(device);
    const char *list = state_of(device, "process_utilization");
    if (!code) code = code_of(list);
    if (!code && device->instance != NO_INSTANCE) code = NOT_SUPPORTED;
    if (code) return code;
    u64 newest = now_us() / SAMPLE_US * SAMPLE_US;
    if (!length(list) || newest <= since) return NOT_FOUND;
    if (!samples || *count < length(list)) {
        *count = length(list);
        return INSUFFICIENT_SIZE;
    }
    *count = length(list);
    for (unsigned i = 0; i < *count; i++, list = strchr(list, ',') + 1)
        samples[i] = (ProcessUtilization){(unsigned)atoi(list), newest, (unsigned)atoi(strchr(list, ':') + 1), 0, 0, 0};
    return SUCCESS;
}

/* MIG */

int nvmlDeviceGetMigMode(Device device, unsigned *current, unsigned *pending) {
    CALL;
    int code = device_status(device);
    const char *mode = state_of(device, "mig_mode");
    if (code || !mode) return code ? code : NOT_SUPPORTED;
    *current = *pending = (unsigned)atoi(mode);
    return SUCCESS;
}
int nvmlDeviceGetMaxMigDeviceCount(Device device, unsigned *count) {
    CALL;
    *count = 7;
    return device_status(device);
}
int nvmlDeviceGetMigDeviceHandleByIndex(Device device, unsigned place, Device *instance) {
    CALL;
    unsigned unused;
    int code = device_status(device);
    if (code) return code;
    if (place >= MAX_INSTANCES || !instance_at(device->index, (int)place, &unused, &unused)) return NOT_FOUND;
    *instance = &instances[device->index][place];
    **instance = (Gpu){device->index, (int)place};
    return SUCCESS;
}
int nvmlDeviceGetGpuInstanceId(Device device, unsigned *number) {
    CALL;
    unsigned unused;
    int code = device_status(device);
    if (!code && !instance_at(device->index, device->instance, number, &unused)) code = NOT_SUPPORTED;
    return code;
}
int nvmlDeviceGetComputeInstanceId(Device device, unsigned *number) {
    CALL;
    unsigned unused;
    int code = device_status(device);
    if (!code && !instance_at(device->index, device->instance, &unused, number)) code = NOT_SUPPORTED;
    return code;
}

/* Events */

static u64 registered, told;

int nvmlEventSetCreate(void **set) {
    CALL;
    *set = &registered;
    registered = 0;
    return driver_status();
}
int nvmlDeviceRegisterEvents(Device device, u64 types, void *set) {
    CALL;
    (void)set;
    u64 unused;
    int code = device_status(device);
    if (!code) code = reading(device, "events", 0, &unused);
    if (!code && types & EVENT_XID) registered |= 1ull << device->index;
    return code;
}
int nvmlEventSetWait_v2(void *set, EventData *event, unsigned timeout_ms) {
    CALL;
    (void)set;
    int code = driver_status();
    if (code) return code;
    for (const char *at = state("events"); at; at = strchr(at, ';') ? strchr(at, ';') + 1 : NULL) {
        u64 number = 0, xid = 0;
        unsigned gpu = MAX_GPUS;
        if (sscanf(at, "%llu/%u/%llu", &number, &gpu, &xid) != 3 || number <= told || gpu >= gpu_count()) continue;
        told = number;
        if (!(registered >> gpu & 1)) continue;
        *event = (EventData){&gpus[gpu], EVENT_XID, xid, ~0u, ~0u};
        return SUCCESS;
    }
    usleep(timeout_ms * 1000);
    return TIMEOUT;
}
int nvmlEventSetFree(void *set) {
    CALL;
    (void)set;
    registered = 0;
    return driver_status();
}

/* What only some drivers have */

#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(Device device, MemoryV2 *memory) {
    CALL;
    if (memory->version != (sizeof *memory | 2u << 24)) return ARGUMENT_VERSION_MISMATCH;
    return memory_readings(device, memory);
}
int nvmlDeviceGetTemperatureV(Device device, TemperatureV1 *temperature) {
    CALL;
    if (temperature->version != (sizeof *temperature | 1u << 24)) return ARGUMENT_VERSION_MISMATCH;
    unsigned celsius;
    int code = reading32(device, "temperature", 66, &celsius);
    temperature->temperature = (int)celsius;
    return code;
}
int nvmlDeviceGetCurrentClocksEventReasons(Device device, u64 *reasons) { CALL; return event_reasons(device, "event_reasons", 4, reasons); }
int nvmlDeviceGetSupportedClocksEventReasons(Device device, u64 *reasons) { CALL; return event_reasons(device, "supported_event_reasons", 0x1ff, reasons); }
int nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned *count, ProcessInfo *processes) { CALL; return process_list(device, "processes", count, processes); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(Device device, unsigned *count, ProcessInfo *processes) { CALL; return process_list(device, "graphics_processes", count, processes); }

static void answer(Device device, FieldValue *field) {
    char key[32];
    snprintf(key, sizeof key, "field.%u", field->fieldId);
    const char *text = state_of(device, key);
    int all_links = field->fieldId == 138 || field->fieldId == 139;
    field->timestamp = (long long)now_us();
    field->latencyUsec = 10;
    field->valueType = TYPE_UNSIGNED_LONG_LONG;
    if (text) {
        if (strncmp(text, "u32:", 4) == 0) field->valueType = TYPE_UNSIGNED_INT, text += 4;
        field->value.ull = strtoull(text, NULL, 0);
        field->nvmlReturn = (unsigned)code_of(text);
    } else if (field->fieldId == 83) {
        field->nvmlReturn = (unsigned)reading(device, "energy_millijoules", 123456789, &field->value.ull);
    } else {
        field->nvmlReturn = NOT_SUPPORTED;
    }
    if (all_links && field->scopeId != ~0u) field->nvmlReturn = INVALID_ARGUMENT;
}
int nvmlDeviceGetFieldValues(Device device, int count, FieldValue *fields) {
    CALL;
    int code = device_status(device);
    for (int i = 0; !code && i < count; i++) answer(device, &fields[i]);
    return code;
}
#else
int nvmlDeviceGetComputeRunningProcesses_v2(Device device, unsigned *count, ProcessInfo *processes) { CALL; return process_list(device, "processes", count, processes); }
int nvmlDeviceGetGraphicsRunningProcesses_v2(Device device, unsigned *count, ProcessInfo *processes) { CALL; return process_list(device, "graphics_processes", count, processes); }
#endif

#ifndef NEW_DRIVER
int nvmlDeviceGetTemperature(Device device, unsigned sensor, unsigned *celsius) {
    CALL;
    (void)sensor;
    return reading32(device, "temperature", 66, celsius);
}
int nvmlDeviceGetCurrentClocksThrottleReasons(Device device, u64 *reasons) { CALL; return event_reasons(device, "event_reasons", 4, reasons); }
int nvmlDeviceGetSupportedClocksThrottleReasons(Device device, u64 *reasons) { CALL; return event_reasons(device, "supported_event_reasons", 0x1ff, reasons); }
#endif
