/* sensors_print KIND [PCI]: what report_sensors.c finds for a device of that kind
 * (ful_device_kind), below FULGUR_BENCH_SYSFS. */
#include <stdio.h>
#include <stdlib.h>

#include "report.h"

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    ful_device_info d = {.kind = (ful_device_kind)atoi(argv[1])};
    snprintf(d.pci, sizeof d.pci, "%s", argc > 2 ? argv[2] : "");
    report_sensors *s = report_sensors_open(&d);
    for (int i = 0; s && i < SENSOR_COUNT; i++) {
        double value;
        bool there = report_sensors_read(s, (report_sensor)i, &value);
        if (there != (report_sensors_source(s, (report_sensor)i) != NULL))
            printf("source and value of %d disagree\n", i);
        if (there)
            printf("%s%s=%g", i ? " " : "", report_sensor_keys[i], value);
        else
            printf("%s%s=none", i ? " " : "", report_sensor_keys[i]);
    }
    printf("\n");
    report_sensors_close(s);
    return 0;
}
