package org.fulgur.sample

import android.content.res.AssetManager
import java.io.Closeable
import java.io.IOException

/** What a generation took. */
data class Speed(val promptTokens: Long, val promptNs: Long, val textTokens: Long, val textNs: Long)

/** The native side, see fulgur_jni.c. One thread at a time, except for [cancel]. */
class Fulgur @Throws(IOException::class) constructor(cacheDir: String) : Closeable {
    /** Called on the thread of the call under way. */
    interface Listener {
        fun onText(utf8: ByteArray)

        /** phase as ful_phase; part from 0 to 1. */
        fun onProgress(phase: Int, part: Double)
    }

    private var handle = nativeOpen(cacheDir)
    private val lock = Any()

    fun device(): String = synchronized(lock) {
        if (handle != 0L) nativeDevice(handle) else ""
    }

    @Throws(IOException::class)
    fun load(folder: String, listener: Listener) = nativeLoad(handle, folder, listener)

    @Throws(IOException::class)
    fun generate(prompt: String, mostTokens: Int, seed: Long, listener: Listener): Speed {
        val v = nativeGenerate(handle, prompt.toByteArray(), mostTokens, seed, listener)
        return Speed(v[0], v[1], v[2], v[3])
    }

    /** From any thread: what is under way ends soon. */
    fun cancel() = synchronized(lock) {
        if (handle != 0L) nativeCancel(handle)
    }

    /** On the thread that makes the other calls. */
    override fun close() = synchronized(lock) {
        if (handle != 0L) nativeClose(handle)
        handle = 0L
    }

    companion object {
        init {
            System.loadLibrary("fulgur_jni")
        }

        @Throws(IOException::class)
        fun copyAssets(assets: AssetManager, from: String, to: String) =
            nativeCopyAssets(assets, from, to)

        @JvmStatic
        @Throws(IOException::class)
        private external fun nativeOpen(cacheDir: String): Long

        @JvmStatic private external fun nativeClose(handle: Long)

        @JvmStatic private external fun nativeCancel(handle: Long)

        @JvmStatic private external fun nativeDevice(handle: Long): String

        @JvmStatic
        @Throws(IOException::class)
        private external fun nativeCopyAssets(assets: AssetManager, from: String, to: String)

        @JvmStatic
        @Throws(IOException::class)
        private external fun nativeLoad(handle: Long, folder: String, listener: Listener)

        @JvmStatic
        @Throws(IOException::class)
        private external fun nativeGenerate(
            handle: Long,
            prompt: ByteArray,
            mostTokens: Int,
            seed: Long,
            listener: Listener,
        ): LongArray
    }
}
