/* A libnvidia-ml.so of GPUs that do as a file says: LIBRARY.control, read again at each call.
 *
 *   gpus N            how many there are (2)
 *   driver 0          there is no driver
 *   value V           what every counter is based on (0)
 *   hang G            calls for this GPU do not come back while this stands there
 *   lost G            it fell off the bus
 *   blank G           it tells DCGM's blanks
 *   bare G            it supports nothing but its memory
 *   mig G             it is cut into two instances
 *   xid G CODE SEQ    an XID, told once for each SEQ that is larger than all before
 *
 * LIBRARY.log has a line for each init, each shutdown, and each call that began to hang. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned int uint;
typedef unsigned long long ull;
enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, ABSENT = 6, TOO_SMALL = 7, NO_DRIVER = 9, TIMED_OUT = 10, LOST = 15 };
enum { U32_BLANK = 2147483632u };
#define MIB 1048576ULL
#define U64_BLANK 9223372036854775794ULL

/* A GPU's handle is its number and 1; an instance's has its number and 1 above. */
typedef struct { int none; } *Device;
#define NUMBER(device) (((uint)(size_t)(device) & 0xff) - 1)
#define INSTANCE(device) ((uint)(size_t)(device) >> 8)

static void beside(char *path, const char *ending) {
    Dl_info self;
    dladdr((void *)beside, &self);
    snprintf(path, 4096, "%s%s", self.dli_fname, ending);
}

static void note(const char *word, uint number) {
    char path[4096];
    beside(path, ".log");
    FILE *log = fopen(path, "a");
    if (log) {
        fprintf(log, "%s %u\n", word, number);
        fclose(log);
    }
}

/* The last line that begins with `word`, and with `number` if that is not -1. */
static int told(const char *word, int number, ull *second, ull *third) {
    char path[4096], line[256], key[32];
    ull a, b, c;
    int found = 0;
    beside(path, ".control");
    FILE *control = fopen(path, "r");
    while (control && fgets(line, sizeof line, control)) {
        a = b = c = 0;
        if (sscanf(line, "%31s %llu %llu %llu", key, &a, &b, &c) < 2 || strcmp(key, word)) continue;
        if (number >= 0 && a != (ull)number) continue;
        found = 1;
        if (second) *second = number < 0 ? a : b;
        if (third) *third = c;
    }
    if (control) fclose(control);
    return found;
}

static ull setting(const char *word, ull otherwise) {
    ull value = otherwise;
    told(word, -1, &value, NULL);
    return value;
}

static int is(const char *word, uint number) { return told(word, (int)number, NULL, NULL); }

/* What every call for a GPU begins with. */
static int enter(Device device) {
    uint number = NUMBER(device);
    if (is("hang", number)) {
        note("hang", number);
        while (is("hang", number)) usleep(5000);
    }
    return is("lost", number) ? LOST : OK;
}

static int enter_full(Device device) {
    int lost = enter(device);
    return lost ? lost : is("bare", NUMBER(device)) || INSTANCE(device) ? UNSUPPORTED : OK;
}

static int tell(Device device, uint *out, ull value) {
    int code = enter_full(device);
    if (code == OK) *out = is("blank", NUMBER(device)) ? U32_BLANK : (uint)(value + setting("value", 0) + NUMBER(device));
    return code;
}

int nvmlInit_v2(void) {
    if (setting("driver", 1) == 0) return NO_DRIVER;
    note("init", 0);
    return OK;
}
int nvmlShutdown(void) { note("shutdown", 0); return OK; }
int nvmlSystemGetDriverVersion(char *text, uint size) { snprintf(text, size, "999.1"); return OK; }
int nvmlDeviceGetCount_v2(uint *count) { *count = (uint)setting("gpus", 2); return setting("driver", 1) ? OK : NO_DRIVER; }

int nvmlDeviceGetHandleByIndex_v2(uint index, Device *device) {
    if (index >= setting("gpus", 2)) return INVALID;
    *device = (Device)(size_t)(index + 1);
    return enter(*device);
}
int nvmlDeviceGetUUID(Device device, char *text, uint size) {
    if (INSTANCE(device)) snprintf(text, size, "MIG-%u-%u", NUMBER(device), INSTANCE(device));
    else snprintf(text, size, "GPU-%u", NUMBER(device));
    return enter(device);
}
int nvmlDeviceGetMinorNumber(Device device, uint *minor) { *minor = NUMBER(device); return enter(device); }
int nvmlDeviceGetName(Device device, char *text, uint size) {
    snprintf(text, size, INSTANCE(device) ? "NVIDIA Fake MIG 1g.10gb" : "NVIDIA Fake");
    return enter(device);
}

int nvmlDeviceGetUtilizationRates(Device device, uint *rates) {
    int code = tell(device, &rates[0], 10);
    return code ? code : tell(device, &rates[1], 20);
}
int nvmlDeviceGetEncoderUtilization(Device device, uint *out, uint *period) { *period = 1; return tell(device, out, 1); }
int nvmlDeviceGetDecoderUtilization(Device device, uint *out, uint *period) { *period = 1; return tell(device, out, 2); }

struct memory { uint version; ull total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo_v2(Device device, struct memory *out) {
    ull part = INSTANCE(device) ? 1000 : 8000;
    out->total = part * MIB;
    out->reserved = 100 * MIB;
    out->used = (part / 10 + NUMBER(device)) * MIB + 17;
    out->free = out->total - out->reserved - out->used;
    if (is("blank", NUMBER(device))) out->total = out->reserved = out->free = out->used = U64_BLANK;
    return enter(device);
}

int nvmlDeviceGetTemperature(Device device, uint sensor, uint *out) { (void)sensor; return tell(device, out, 40); }
int nvmlDeviceGetTemperatureThreshold(Device device, uint kind, uint *out) { return tell(device, out, kind ? 87 : 92); }
int nvmlDeviceGetPowerUsage(Device device, uint *out) { return tell(device, out, 350500); }
int nvmlDeviceGetPowerManagementLimit(Device device, uint *out) { return tell(device, out, 700000); }
int nvmlDeviceGetEnforcedPowerLimit(Device device, uint *out) { return tell(device, out, 650000); }
int nvmlDeviceGetClockInfo(Device device, uint kind, uint *out) { return tell(device, out, 1000 + 100 * kind); }
int nvmlDeviceGetNumFans(Device device, uint *out) { *out = 2; return enter_full(device); }
int nvmlDeviceGetFanSpeed_v2(Device device, uint fan, uint *out) { return tell(device, out, 30 + fan); }
int nvmlDeviceGetPerformanceState(Device device, uint *out) { *out = NUMBER(device); return enter_full(device); }
int nvmlDeviceGetCurrentClocksThrottleReasons(Device device, ull *out) { *out = 4; return enter_full(device); }
int nvmlDeviceGetPcieThroughput(Device device, uint counter, uint *out) { return tell(device, out, 5000 + counter); }
int nvmlDeviceGetCurrPcieLinkGeneration(Device device, uint *out) { *out = 5; return enter_full(device); }
int nvmlDeviceGetCurrPcieLinkWidth(Device device, uint *out) { *out = 16; return enter_full(device); }

struct field { uint id, scope; long long at, latency; uint type, code; union { uint u; ull ull; } value; };
int nvmlDeviceGetFieldValues(Device device, int count, struct field *fields) {
    int code = enter_full(device);
    for (int i = 0; code == OK && i < count; i++) {
        int wide = fields[i].id == 83; /* energy: larger than 32 bits */
        fields[i].code = fields[i].id == 145 ? UNSUPPORTED : OK;
        fields[i].type = wide ? 3 : 1;
        fields[i].value.ull = 0;
        if (wide) fields[i].value.ull = is("blank", NUMBER(device)) ? U64_BLANK : 5000000000ULL + setting("value", 0);
        else fields[i].value.u = is("blank", NUMBER(device)) ? U32_BLANK : fields[i].id;
    }
    return code;
}

struct process { uint pid; ull memory; uint instance, part; };
static int processes(Device device, uint *count, struct process *out, uint there) {
    int code = enter_full(device);
    if (code) return code;
    if (*count < there) { *count = there; return TOO_SMALL; }
    for (uint i = 0; i < there; i++) {
        out[i].pid = 100 + i;
        out[i].memory = i == 1 ? ~0ULL : (i + 1) * MIB;
        out[i].instance = out[i].part = ~0u;
    }
    *count = there;
    return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(Device device, uint *count, struct process *out) { return processes(device, count, out, 12); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(Device device, uint *count, struct process *out) { return processes(device, count, out, 0); }

struct support { uint version, supported; };
struct metric { uint id, code; double value; const char *texts[3]; };
struct metrics { uint version, count; void *before, *after; struct metric metric[]; };
int nvmlGpmQueryDeviceSupport(Device device, struct support *out) { out->supported = NUMBER(device) == 0; return enter_full(device); }
int nvmlGpmSampleAlloc(void **sample) { *sample = malloc(1); return OK; }
int nvmlGpmSampleFree(void *sample) { free(sample); return OK; }
int nvmlGpmSampleGet(Device device, void *sample) { (void)sample; return enter_full(device); }
int nvmlGpmMetricsGet(struct metrics *all) {
    for (uint i = 0; i < all->count; i++) {
        all->metric[i].code = OK;
        all->metric[i].value = all->metric[i].id;
        memset(all->metric[i].texts, 0, sizeof all->metric[i].texts);
    }
    return OK;
}

int nvmlDeviceGetMigMode(Device device, uint *now, uint *next) {
    *now = *next = (uint)is("mig", NUMBER(device));
    return enter_full(device);
}
int nvmlDeviceGetMaxMigDeviceCount(Device device, uint *count) { *count = 7; return enter_full(device); }
int nvmlDeviceGetMigDeviceHandleByIndex(Device device, uint index, Device *instance) {
    if (index != 1 && index != 4) return ABSENT;
    *instance = (Device)((size_t)device | (size_t)index << 8);
    return enter(device);
}

struct event { Device device; ull type, value; uint instance, part; };
static uint watched, seen;
int nvmlEventSetCreate(void **set) { watched = 0; *set = malloc(1); return OK; }
int nvmlEventSetFree(void *set) { free(set); return OK; }
int nvmlDeviceGetSupportedEventTypes(Device device, ull *types) { *types = 8; return enter_full(device); }
int nvmlDeviceRegisterEvents(Device device, ull types, void *set) {
    (void)types, (void)set;
    watched |= 1u << NUMBER(device);
    return enter(device);
}
int nvmlEventSetWait_v2(void *set, struct event *out, uint timeout_ms) {
    (void)set;
    for (uint waited = 0; waited < timeout_ms; waited += 5, usleep(5000))
        for (uint number = 0; number < 32; number++) {
            ull code, seq;
            if (!(watched >> number & 1) || !told("xid", (int)number, &code, &seq) || seq <= seen) continue;
            seen = (uint)seq;
            memset(out, 0, sizeof *out);
            out->device = (Device)(size_t)(number + 1);
            out->type = 8;
            out->value = code;
            return OK;
        }
    return TIMED_OUT;
}
