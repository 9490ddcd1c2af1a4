/* Clocks and temperatures as Linux and Android tell them in /sys. Other systems: none. */
#include "report.h"

#include <stdlib.h>
#include <string.h>
#ifndef _WIN32
#include <glob.h>
#endif

const char *const report_sensor_keys[SENSOR_COUNT] = {
    [SENSOR_DEVICE_CLOCK] = "device_clock_mhz",
    [SENSOR_DEVICE_TEMPERATURE] = "device_temperature_c",
    [SENSOR_CPU_CLOCK] = "cpu_clock_mhz",
    [SENSOR_CPU_TEMPERATURE] = "cpu_temperature_c"};

enum { PATH_BYTES = 512, MOST_FILES = 256 };

typedef struct sensor {
    char pattern[PATH_BYTES]; /* as found, with wild cards; "" = not available */
    char **files;
    size_t count;
    double unit;  /* of a number in the file, in MHz or degrees */
    bool largest; /* of the files; else their mean */
} sensor;

struct report_sensors {
    sensor list[SENSOR_COUNT];
};

#ifdef _WIN32

static void find(sensor *s, const char *root, const char *pattern, double unit, bool largest)
{
    (void)s, (void)root, (void)pattern, (void)unit, (void)largest;
}

#else

static bool read_number(const char *path, double *out)
{
    FILE *f = fopen(path, "r");
    if (!f)
        return false;
    bool good = fscanf(f, "%lf", out) == 1;
    fclose(f);
    return good;
}

/* Drivers leave files there that give nothing, or nonsense while the device sleeps. */
static bool plausible(const sensor *s, const char *path)
{
    double v;
    return read_number(path, &v) && v * s->unit > 0.0 && v * s->unit < 1e5;
}

/* Takes the files that match, unless an earlier pattern was found. */
static void find(sensor *s, const char *root, const char *pattern, double unit, bool largest)
{
    glob_t found;
    char path[PATH_BYTES];
    if (s->pattern[0] || snprintf(path, sizeof path, "%s/%s", root, pattern) >= PATH_BYTES)
        return;
    s->unit = unit;
    s->largest = largest;
    if (glob(path, 0, NULL, &found) != 0)
        return;
    s->files = calloc(found.gl_pathc, sizeof *s->files);
    for (size_t i = 0; s->files && i < found.gl_pathc && s->count < MOST_FILES; i++) {
        size_t bytes = strlen(found.gl_pathv[i]) + 1;
        char *copy = plausible(s, found.gl_pathv[i]) ? malloc(bytes) : NULL;
        if (!copy)
            continue;
        memcpy(copy, found.gl_pathv[i], bytes);
        s->files[s->count++] = copy;
    }
    globfree(&found);
    if (s->count) {
        memcpy(s->pattern, path, sizeof path);
    } else {
        free(s->files);
        s->files = NULL;
    }
}

#endif

/* A device on the PCI bus, whatever its driver: hwmon gives temp1_input, AMD's also the clock;
 * Intel's drivers tell it beside the DRM card. */
static void find_pci(report_sensors *s, const char *root, const char *pci)
{
    static const struct {
        const char *file;
        double unit;
        report_sensor which;
    } rows[] = {{"hwmon/hwmon*/temp1_input", 1e-3, SENSOR_DEVICE_TEMPERATURE},
                {"hwmon/hwmon*/freq1_input", 1e-6, SENSOR_DEVICE_CLOCK},
                {"drm/card*/gt_act_freq_mhz", 1.0, SENSOR_DEVICE_CLOCK},
                {"tile0/gt0/freq0/act_freq", 1.0, SENSOR_DEVICE_CLOCK}};
    for (size_t i = 0; pci[0] && i < sizeof rows / sizeof *rows; i++) {
        char pattern[PATH_BYTES];
        snprintf(pattern, sizeof pattern, "bus/pci/devices/%s/%s", pci, rows[i].file);
        find(&s->list[rows[i].which], root, pattern, rows[i].unit, true);
    }
}

report_sensors *report_sensors_open(const ful_device_info *device)
{
    report_sensors *s = calloc(1, sizeof *s);
    const char *given = getenv("FULGUR_BENCH_SYSFS"); /* for tests of this program */
    const char *root = given && *given ? given : "/sys";
    if (!s)
        return NULL;
    if (device->kind != FUL_DEVICE_CPU) {
        sensor *clock = &s->list[SENSOR_DEVICE_CLOCK], *heat = &s->list[SENSOR_DEVICE_TEMPERATURE];
        find_pci(s, root, device->pci);
        /* Phones: the GPU is on no bus. */
        if (!device->pci[0]) {
            find(clock, root, "class/kgsl/kgsl-3d0/gpuclk", 1e-6, true);
            find(clock, root, "class/devfreq/*gpu*/cur_freq", 1e-6, true);
            find(clock, root, "class/devfreq/*mali*/cur_freq", 1e-6, true);
            find(heat, root, "class/kgsl/kgsl-3d0/temp", 1e-3, true);
        }
    }
    find(&s->list[SENSOR_CPU_CLOCK], root, "devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq",
         1e-3, false);
    find(&s->list[SENSOR_CPU_TEMPERATURE], root, "class/thermal/thermal_zone*/temp", 1e-3, true);
    find(&s->list[SENSOR_CPU_TEMPERATURE], root, "class/hwmon/hwmon*/temp1_input", 1e-3, true);
    return s;
}

void report_sensors_close(report_sensors *s)
{
    for (int i = 0; s && i < SENSOR_COUNT; i++) {
        for (size_t k = 0; k < s->list[i].count; k++)
            free(s->list[i].files[k]);
        free(s->list[i].files);
    }
    free(s);
}

bool report_sensors_read(const report_sensors *s, report_sensor which, double *value)
{
    double sum = 0.0, most = 0.0;
    size_t n = 0;
#ifndef _WIN32
    const sensor *it = &s->list[which];
    for (size_t i = 0; i < it->count; i++) {
        double v;
        if (!read_number(it->files[i], &v))
            continue;
        v *= it->unit;
        most = n == 0 || v > most ? v : most;
        sum += v;
        n++;
    }
    *value = n == 0 ? 0.0 : it->largest ? most : sum / (double)n;
#else
    (void)s, (void)which, (void)sum, (void)most;
    *value = 0.0;
#endif
    return n > 0;
}

const char *report_sensors_source(const report_sensors *s, report_sensor which)
{
    return s->list[which].pattern[0] ? s->list[which].pattern : NULL;
}
