/* report_check PAGE.html [FILE.json]: every number that a page of `fulgur bench report` shows is
 * the one at its place in the JSON that the page holds, dots and curves lie where the JSON says,
 * nothing is fetched, and the JSON is that of the file. Prints how much was checked. report_check
 * --at FILE.json POINTER: prints the value there. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

static int failures;

static char *read_all(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END) != 0) {
        perror(path);
        exit(2);
    }
    long bytes = ftell(f);
    rewind(f);
    char *text = calloc((size_t)bytes + 1, 1);
    if (!text || fread(text, 1, (size_t)bytes, f) != (size_t)bytes) {
        perror(path);
        exit(2);
    }
    fclose(f);
    return text;
}

static const json_t *at(const json_t *root, const char *pointer)
{
    char key[128];
    while (root && *pointer == '/') {
        size_t n = strcspn(++pointer, "/\"");
        snprintf(key, sizeof key, "%.*s", (int)n, pointer);
        pointer += n;
        root = json_is_array(root) ? json_array_get(root, (size_t)strtoull(key, NULL, 10))
                                   : json_object_get(root, key);
    }
    return root;
}

/* Value of an attribute of the element at `p`, NULL if it has none. */
static const char *attribute(const char *p, const char *name)
{
    const char *end = strchr(p, '>');
    const char *found = strstr(p, name);
    return found && end && found < end ? found + strlen(name) : NULL;
}

static int check_numbers(const char *page, const json_t *root)
{
    int n = 0;
    for (const char *p = page; (p = strstr(p, "class=\"n")); p++) {
        const char *pointer = attribute(p, "data-at=\"");
        if (!pointer)
            continue;
        const json_t *value = at(root, pointer);
        const char *text = strchr(pointer, '>') + 1;
        char *end;
        double shown = strtod(text, &end);
        if (!json_is_number(value) || end == text || *end != '<' ||
            shown != json_number_value(value)) {
            printf("FAIL %.60s: the JSON has %.17g\n", pointer, json_number_value(value));
            failures++;
        }
        n++;
    }
    return n;
}

/* Numbers in cells that say nothing of where they come from could not be checked. */
static void check_cells(const char *page)
{
    for (const char *p = page; (p = strstr(p, "<td class=\"n")); p++)
        if (!attribute(p, "data-at=\"") && !attribute(p, "none")) {
            printf("FAIL a number without a place: %.60s\n", p);
            failures++;
        }
}

typedef struct plot {
    double x0, x1, y0, y1, left, top, right, bottom;
} plot;

static double edge(const char *svg, const char *name)
{
    const char *v = attribute(svg, name);
    return v ? strtod(v, NULL) : NAN;
}

static plot plot_at(const char *svg)
{
    plot p = {edge(svg, "data-x0=\""),
              edge(svg, "data-x1=\""),
              edge(svg, "data-y0=\""),
              edge(svg, "data-y1=\""),
              0,
              0,
              0,
              0};
    const char *box = attribute(svg, "data-box=\"");
    if (box)
        sscanf(box, "%lf %lf %lf %lf", &p.left, &p.top, &p.right, &p.bottom);
    return p;
}

static void check_place(const plot *p, double x, double y, double px, double py, const char *what)
{
    double want_x = p->left + (p->right - p->left) * (x - p->x0) / (p->x1 - p->x0);
    double want_y = p->bottom - (p->bottom - p->top) * (y - p->y0) / (p->y1 - p->y0);
    if (fabs(px - want_x) < 0.02 && fabs(py - want_y) < 0.02 && px >= p->left - 0.1 &&
        px <= p->right + 0.1 && py >= p->top - 0.1 && py <= p->bottom + 0.1)
        return;
    printf("FAIL %s at %g %g instead of %g %g\n", what, px, py, want_x, want_y);
    failures++;
}

static int check_dots(const plot *p, const char *svg, const char *end, const json_t *root)
{
    int n = 0;
    for (const char *c = svg; (c = strstr(c, "<circle")) && c < end; c++, n++) {
        const json_t *r = at(root, attribute(c, "data-at=\""));
        check_place(p, log10(json_number_value(json_object_get(r, "flop_per_byte"))),
                    log10(json_number_value(json_object_get(r, "tflop_per_s"))), edge(c, "cx=\""),
                    edge(c, "cy=\""), "a dot");
    }
    return n;
}

static int check_curves(const plot *p, const char *svg, const char *end, const json_t *root)
{
    int n = 0;
    for (const char *c = svg; (c = strstr(c, "class=\"curve")) && c < end; c++) {
        const char *name = attribute(c, "data-key=\""), *d = attribute(c, " d=\"");
        char key[64];
        size_t i;
        json_t *s;
        snprintf(key, sizeof key, "%.*s", (int)strcspn(name, "\""), name);
        json_array_foreach(at(root, "/sustained/samples"), i, s)
        {
            const json_t *value = json_object_get(s, key);
            double x = NAN, y = NAN;
            int used = 0;
            if (!json_is_number(value))
                continue;
            if (sscanf(d, "%*[ML]%lf %lf%n", &x, &y, &used) == 2)
                d += used;
            check_place(p, json_number_value(json_object_get(s, "t_s")), json_number_value(value),
                        x, y, key);
            n++;
        }
        if (*d != '"') {
            printf("FAIL the curve of %s goes on: %.40s\n", key, d);
            failures++;
        }
    }
    return n;
}

static void check_alone(const char *page, const char *json)
{
    static const char *const outside[] = {"src=",  "href=", "url(",  "@import",
                                          "<link", "http:", "https:"};
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        const char *found = strstr(page, outside[i]);
        if (found && found < json) {
            printf("FAIL the page asks for something: %.60s\n", found);
            failures++;
        }
    }
}

static int print_at(const char *path, const char *pointer)
{
    json_error_t error;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    const json_t *value = at(root, pointer);
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9)) : NULL;
    if (text)
        puts(text);
    else
        fprintf(stderr, "%s: nothing at %s\n", path, pointer);
    int code = text ? 0 : 1;
    free(text);
    json_decref(root);
    return code;
}

int main(int argc, char **argv)
{
    static const char script[] = "<script type=\"application/json\" id=\"report\">";
    json_error_t error;
    if (argc == 4 && strcmp(argv[1], "--at") == 0)
        return print_at(argv[2], argv[3]);
    if (argc < 2)
        return 2;
    char *page = read_all(argv[1]);
    const char *begin = strstr(page, script), *end = begin ? strstr(begin, "</script>") : NULL;
    if (!end || strcmp(end, "</script></body></html>\n") != 0) {
        printf("FAIL %s: no JSON at its end\n", argv[1]);
        return 1;
    }
    begin += strlen(script);
    json_t *root = json_loadb(begin, (size_t)(end - begin), JSON_REJECT_DUPLICATES, &error);
    if (!root) {
        printf("FAIL %s: its JSON: %s\n", argv[1], error.text);
        return 1;
    }
    if (argc > 2) {
        char *file = read_all(argv[2]);
        json_t *other = json_loads(file, JSON_REJECT_DUPLICATES, &error);
        if (!other || !json_equal(root, other)) {
            printf("FAIL %s holds other JSON than %s\n", argv[1], argv[2]);
            failures++;
        }
        json_decref(other);
        free(file);
    }
    check_alone(page, begin);
    check_cells(page);
    int numbers = check_numbers(page, root), dots = 0, points = 0;
    for (const char *svg = page; (svg = strstr(svg, "<svg ")) && svg < begin; svg++) {
        if (!attribute(svg, "data-box=\""))
            continue;
        plot p = plot_at(svg);
        const char *close = strstr(svg, "</svg>");
        dots += check_dots(&p, svg, close, root);
        points += check_curves(&p, svg, close, root);
    }
    printf("%d numbers, %d dots, %d points\n", numbers, dots, points);
    json_decref(root);
    free(page);
    return failures ? 1 : 0;
}
