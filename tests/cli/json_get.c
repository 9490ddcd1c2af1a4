/* json_get [KEY]: reads JSON from standard input, strictly, and prints the value of KEY, or the
 * whole value if none is given: strings as they are, arrays as their size. Fails if it is no JSON
 * or has no such key. */
#include <stdio.h>
#include <string.h>

#include <jansson.h>

int main(int argc, char **argv)
{
    json_error_t error;
    json_t *root = json_loadf(stdin, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (!root) {
        fprintf(stderr, "not JSON: %s at %d:%d\n", error.text, error.line, error.column);
        return 1;
    }
    /* A list: its first element. */
    json_t *value = argc > 1 && json_is_array(root) ? json_array_get(root, 0) : root;
    if (argc > 1)
        value = json_object_get(value, argv[1]);
    if (!value)
        fprintf(stderr, "no key %s\n", argv[1]);
    else if (json_is_string(value))
        fwrite(json_string_value(value), 1, json_string_length(value), stdout);
    else if (json_is_array(value))
        printf("%zu\n", json_array_size(value));
    else if (json_is_integer(value))
        printf("%lld\n", json_integer_value(value));
    else if (json_is_real(value))
        printf("%.9g\n", json_real_value(value));
    else if (json_is_boolean(value))
        printf("%s\n", json_is_true(value) ? "true" : "false");
    int code = value ? 0 : 1;
    json_decref(root);
    return code;
}
