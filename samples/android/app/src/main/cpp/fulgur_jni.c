/* The app's bridge to fulgur: a session behind a handle, text streamed to a listener. One Kotlin
 * thread at a time uses a handle; only nativeCancel may come from another. */
#include <android/asset_manager.h>
#include <android/asset_manager_jni.h>
#include <android/log.h>
#include <errno.h>
#include <jni.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <fulgur/session.h>
#include <fulgur/tokenizer.h>

#define TAG "fulgur"
#define CALL(name) Java_org_fulgur_sample_Fulgur_##name

typedef struct app {
    ful_instance *instance;
    ful_device *device;
    ful_tokenizer *tokenizer;
    ful_model *model;
    ful_session *session;
    atomic_bool cancel;
} app;

/* What the callbacks of one call need. */
typedef struct listener {
    JNIEnv *env;
    jobject object;
    jmethodID on_text, on_progress;
    app *app;
    ful_utf8_stream stream;
} listener;

static void log_line(void *ctx, ful_log_level level, const char *message)
{
    (void)ctx;
    int priority = level <= FUL_LOG_ERROR     ? ANDROID_LOG_ERROR
                   : level == FUL_LOG_WARNING ? ANDROID_LOG_WARN
                                              : ANDROID_LOG_INFO;
    __android_log_write(priority, TAG, message);
}

/* Java's own encoding is not UTF-8, and a driver's name or a file's need not be text at all. */
static void make_ascii(char *text)
{
    for (; *text; text++)
        *text = (unsigned char)*text < 0x80 ? *text : '?';
}

static void throw_line(JNIEnv *env, const char *line)
{
    char text[1200];
    snprintf(text, sizeof text, "%s", line);
    make_ascii(text);
    jclass kind = (*env)->FindClass(env, "java/io/IOException");
    if (kind)
        (*env)->ThrowNew(env, kind, text);
}

static void throw_last(JNIEnv *env, ful_result result)
{
    char line[1200];
    snprintf(line, sizeof line, "%s: %s", ful_result_name(result), ful_last_error());
    throw_line(env, line);
}

static app *from_handle(jlong handle)
{
    return (app *)(uintptr_t)handle;
}

/* NewStringUTF takes Java's own encoding, which has no four-byte sequences: bytes cross instead. */
static bool send_text(listener *l, const char *text, size_t bytes)
{
    JNIEnv *env = l->env;
    if (bytes == 0)
        return true;
    jbyteArray array = (*env)->NewByteArray(env, (jsize)bytes);
    if (!array)
        return false;
    (*env)->SetByteArrayRegion(env, array, 0, (jsize)bytes, (const jbyte *)text);
    (*env)->CallVoidMethod(env, l->object, l->on_text, array);
    (*env)->DeleteLocalRef(env, array);
    return !(*env)->ExceptionCheck(env);
}

static bool on_token(void *ctx, int32_t token)
{
    listener *l = ctx;
    enum { PART = 512 }; /* bytes */
    size_t bytes;
    const char *text = ful_tokenizer_token_bytes(l->app->tokenizer, token, &bytes);
    char out[FUL_UTF8_STREAM_ROOM(PART)];
    for (size_t at = 0; at < bytes; at += PART) {
        size_t part = bytes - at < PART ? bytes - at : PART;
        if (!send_text(l, out, ful_utf8_stream_push(&l->stream, text + at, part, out)))
            return false;
    }
    return !atomic_load(&l->app->cancel);
}

static bool on_progress(void *ctx, const ful_progress *p)
{
    listener *l = ctx;
    (*l->env)->CallVoidMethod(l->env, l->object, l->on_progress, (jint)p->phase,
                              (jdouble)((double)p->done / (double)p->total));
    return !(*l->env)->ExceptionCheck(l->env) && !atomic_load(&l->app->cancel);
}

static bool listener_open(listener *l, JNIEnv *env, app *a, jobject object)
{
    *l = (listener){.env = env, .object = object, .app = a};
    jclass kind = (*env)->GetObjectClass(env, object);
    l->on_text = (*env)->GetMethodID(env, kind, "onText", "([B)V");
    l->on_progress = l->on_text ? (*env)->GetMethodID(env, kind, "onProgress", "(ID)V") : NULL;
    return l->on_progress != NULL; /* else an exception is pending */
}

static void app_close_model(app *a)
{
    ful_session_destroy(&a->session);
    ful_model_destroy(&a->model);
    ful_tokenizer_destroy(&a->tokenizer);
}

JNIEXPORT jlong JNICALL CALL(nativeOpen)(JNIEnv *env, jclass kind, jstring cache_dir)
{
    (void)kind;
    app *a = calloc(1, sizeof *a);
    if (!a) {
        throw_line(env, "out of memory");
        return 0;
    }
    const char *cache = (*env)->GetStringUTFChars(env, cache_dir, NULL);
    ful_result r = cache ? FUL_OK : FUL_ERR_HOST_MEMORY;
    if (r == FUL_OK)
        r = ful_instance_create(&a->instance,
                                ful_instance_params(.log = log_line, .app_name = "fulgur sample"));
    if (r == FUL_OK) /* short submissions leave the GPU to the screen */
        r = ful_device_open(&a->device, a->instance,
                            ful_device_params(.cache_dir = cache, .max_submit_ms = 10));
    if (cache)
        (*env)->ReleaseStringUTFChars(env, cache_dir, cache);
    if (r == FUL_OK)
        return (jlong)(uintptr_t)a;
    if (!(*env)->ExceptionCheck(env))
        throw_last(env, r);
    ful_instance_destroy(&a->instance);
    free(a);
    return 0;
}

JNIEXPORT void JNICALL CALL(nativeClose)(JNIEnv *env, jclass kind, jlong handle)
{
    (void)env, (void)kind;
    app *a = from_handle(handle);
    app_close_model(a);
    ful_device_close(&a->device);
    ful_instance_destroy(&a->instance);
    free(a);
}

/* From any thread; what is under way ends after the token or the file at hand. */
JNIEXPORT void JNICALL CALL(nativeCancel)(JNIEnv *env, jclass kind, jlong handle)
{
    (void)env, (void)kind;
    atomic_store(&from_handle(handle)->cancel, true);
}

JNIEXPORT jstring JNICALL CALL(nativeDevice)(JNIEnv *env, jclass kind, jlong handle)
{
    (void)kind;
    const ful_device_info *d = ful_device_get_info(from_handle(handle)->device);
    char text[1024];
    size_t n = (size_t)snprintf(
        text, sizeof text, "%s\n%s\n%s\n%llu MiB\nsubgroups of %u, %u KiB shared\n", d->name,
        d->driver, ful_device_kind_name(d->kind),
        (unsigned long long)(d->caps.device_memory_bytes >> 20), (unsigned)d->caps.subgroup_size,
        (unsigned)(d->caps.shared_bytes >> 10));
    for (uint32_t bit = 1; bit && n < sizeof text; bit <<= 1)
        if ((d->caps.features & bit) && ful_feature_name(bit))
            n += (size_t)snprintf(text + n, sizeof text - n, "%s ", ful_feature_name(bit));
    make_ascii(text);
    return (*env)->NewStringUTF(env, text);
}

static bool copy_asset(AAsset *asset, const char *path, char *line, size_t room)
{
    static const size_t CHUNK = 1 << 20;
    char *buffer = malloc(CHUNK);
    FILE *out = buffer ? fopen(path, "wb") : NULL;
    bool good = out != NULL;
    int n = 0;
    while (good && (n = AAsset_read(asset, buffer, CHUNK)) > 0)
        good = fwrite(buffer, 1, (size_t)n, out) == (size_t)n;
    good = good && n == 0;
    if (out && fclose(out) != 0)
        good = false;
    free(buffer);
    if (!good)
        snprintf(line, room, "%s: cannot copy the asset: %s", path, strerror(errno));
    return good;
}

/* Copies the files of an assets folder to `to`, which exists: they are packed in the app, and the
 * library maps files. */
JNIEXPORT void JNICALL CALL(nativeCopyAssets)(JNIEnv *env, jclass kind, jobject manager,
                                              jstring from, jstring to)
{
    (void)kind;
    char line[1200] = "";
    AAssetManager *assets = AAssetManager_fromJava(env, manager);
    const char *source = (*env)->GetStringUTFChars(env, from, NULL);
    const char *target = source ? (*env)->GetStringUTFChars(env, to, NULL) : NULL;
    AAssetDir *dir = target ? AAssetManager_openDir(assets, source) : NULL;
    int files = 0;
    for (const char *name; dir && !line[0] && (name = AAssetDir_getNextFileName(dir)); files++) {
        char asset_path[512], path[1024];
        snprintf(asset_path, sizeof asset_path, "%s/%s", source, name);
        snprintf(path, sizeof path, "%s/%s", target, name);
        AAsset *asset = AAssetManager_open(assets, asset_path, AASSET_MODE_STREAMING);
        if (!asset)
            snprintf(line, sizeof line, "assets/%s: cannot open", asset_path);
        else
            copy_asset(asset, path, line, sizeof line);
        if (asset)
            AAsset_close(asset);
    }
    if (dir)
        AAssetDir_close(dir);
    if (target && files == 0)
        snprintf(line, sizeof line, "assets/%s: no such folder in this app", source);
    if (target)
        (*env)->ReleaseStringUTFChars(env, to, target);
    if (source)
        (*env)->ReleaseStringUTFChars(env, from, source);
    if (line[0])
        throw_line(env, line);
}

JNIEXPORT void JNICALL CALL(nativeLoad)(JNIEnv *env, jclass kind, jlong handle, jstring folder,
                                        jobject object)
{
    (void)kind;
    app *a = from_handle(handle);
    listener l;
    if (!listener_open(&l, env, a, object))
        return;
    const char *path = (*env)->GetStringUTFChars(env, folder, NULL);
    if (!path)
        return;
    ful_plan plan;
    app_close_model(a);
    atomic_store(&a->cancel, false);
    ful_result r = ful_tokenizer_load(&a->tokenizer, a->instance, path);
    if (r == FUL_OK)
        r = ful_model_plan(a->instance, path, a->device, ful_plan_params(.max_tokens = 2048),
                           &plan);
    if (r == FUL_OK)
        r = ful_model_load(&a->model, a->device, path, &plan, on_progress, &l);
    if (r == FUL_OK)
        r = ful_session_create(&a->session, a->model, NULL);
    (*env)->ReleaseStringUTFChars(env, folder, path);
    if (r != FUL_OK) {
        app_close_model(a);
        if (!(*env)->ExceptionCheck(env))
            throw_last(env, r);
    }
}

static ful_result feed_prompt(app *a, const char *text, size_t bytes)
{
    int32_t first = ful_model_get_info(a->model)->bos_token_id;
    size_t begin = first >= 0 ? 1 : 0;
    size_t count = 0;
    ful_result r = ful_tokenizer_encode(a->tokenizer, text, bytes, FUL_ENCODE_PLAIN, NULL, &count);
    if (r != FUL_OK)
        return r;
    int32_t *tokens = malloc((count + 1) * sizeof *tokens);
    if (!tokens)
        return FUL_ERR_HOST_MEMORY;
    tokens[0] = first;
    r = ful_tokenizer_encode(a->tokenizer, text, bytes, FUL_ENCODE_PLAIN, tokens + begin, &count);
    if (r == FUL_OK)
        r = ful_session_reset(a->session);
    if (r == FUL_OK)
        r = ful_prefill(a->session, tokens, begin + count);
    free(tokens);
    return r;
}

/* {prompt tokens, prompt ns, new tokens, ns of these}; NULL with an exception pending. */
JNIEXPORT jlongArray JNICALL CALL(nativeGenerate)(JNIEnv *env, jclass kind, jlong handle,
                                                  jbyteArray prompt, jint most_tokens, jlong seed,
                                                  jobject object)
{
    (void)kind;
    app *a = from_handle(handle);
    listener l;
    ful_stats before, after;
    if (!a->session) {
        throw_line(env, "no model is loaded");
        return NULL;
    }
    if (!listener_open(&l, env, a, object))
        return NULL;
    jsize bytes = (*env)->GetArrayLength(env, prompt);
    jbyte *text = (*env)->GetByteArrayElements(env, prompt, NULL);
    if (!text)
        return NULL;
    atomic_store(&a->cancel, false);
    ful_result r = ful_session_stats(a->session, &before);
    if (r == FUL_OK)
        r = feed_prompt(a, (const char *)text, (size_t)bytes);
    (*env)->ReleaseByteArrayElements(env, prompt, text, JNI_ABORT);
    if (r == FUL_OK)
        r = ful_generate(
            a->session,
            ful_generate_params(.max_tokens = (size_t)most_tokens,
                                .sampler = ful_sampler_params(.seed = (uint64_t)seed,
                                                              .temperature = 0.8f, .top_p = 0.9f)),
            on_token, &l, NULL);
    char rest[3];
    if (!(*env)->ExceptionCheck(env))
        send_text(&l, rest, ful_utf8_stream_finish(&l.stream, rest));
    if (r == FUL_OK)
        r = ful_session_stats(a->session, &after);
    if (r != FUL_OK && !(*env)->ExceptionCheck(env))
        throw_last(env, r);
    if ((*env)->ExceptionCheck(env))
        return NULL;
    jlong values[4] = {(jlong)(after.prefill_tokens - before.prefill_tokens),
                       (jlong)(after.prefill_ns - before.prefill_ns),
                       (jlong)(after.decode_tokens - before.decode_tokens),
                       (jlong)(after.decode_ns - before.decode_ns)};
    jlongArray array = (*env)->NewLongArray(env, 4);
    if (array)
        (*env)->SetLongArrayRegion(env, array, 0, 4, values);
    return array;
}
