package org.fulgur.sample

import android.app.Activity
import android.app.AlertDialog
import android.content.Intent
import android.net.Uri
import android.os.Bundle
import android.os.PowerManager
import android.provider.DocumentsContract
import android.view.ViewGroup.LayoutParams.MATCH_PARENT
import android.view.ViewGroup.LayoutParams.WRAP_CONTENT
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.TextView
import android.widget.Toast
import java.io.File
import java.io.IOException
import java.io.InputStream
import java.io.OutputStream
import java.util.concurrent.Executors
import java.util.concurrent.atomic.AtomicBoolean

/** A prompt, the text as it comes, a page with device and speed, a model from a folder. */
class MainActivity : Activity(), Fulgur.Listener {
    private lateinit var story: TextView
    private lateinit var scroll: ScrollView
    private lateinit var prompt: EditText
    private lateinit var tell: Button
    private lateinit var status: TextView
    private val worker = Executors.newSingleThreadExecutor()
    private val busy = AtomicBoolean()
    @Volatile private var engine: Fulgur? = null
    @Volatile private var speed: Speed? = null
    @Volatile private var thermal = PowerManager.THERMAL_STATUS_NONE
    @Volatile private var visible = false
    @Volatile private var telling = false
    @Volatile private var stopped = false // what is under way is to end
    private var seed = 0L
    private val thermalListener = PowerManager.OnThermalStatusChangedListener(::onThermal)

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(page())
        getSystemService(PowerManager::class.java)
            .addThermalStatusListener(mainExecutor, thermalListener)
        work {
            val e = Fulgur(cacheDir.path)
            engine = e
            e.load(bundledModel().path, this)
            say(getString(R.string.ready, getString(R.string.app_name)))
        }
    }

    override fun onStart() {
        super.onStart()
        visible = true
    }

    /** Nobody sees the text: the GPU and the battery are for others. Loading goes on. */
    override fun onStop() {
        visible = false
        if (telling) cancel()
        super.onStop()
    }

    override fun onDestroy() {
        getSystemService(PowerManager::class.java).removeThermalStatusListener(thermalListener)
        cancel()
        worker.execute { engine?.close() }
        worker.shutdown()
        super.onDestroy()
    }

    // ---- the page ----

    private fun page(): LinearLayout {
        val column = LinearLayout(this).apply { orientation = LinearLayout.VERTICAL }
        val row = LinearLayout(this)
        prompt = EditText(this).apply { setText(R.string.prompt) }
        story = TextView(this).apply {
            setTextIsSelectable(true)
            textSize = 18f
        }
        scroll = ScrollView(this).apply { addView(story) }
        status = TextView(this)
        tell = button(R.string.tell) { if (busy.get()) cancel() else start() }
        row.addView(tell)
        row.addView(button(R.string.device) { showDevice() })
        row.addView(button(R.string.pick) {
            startActivityForResult(Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), PICK)
        })
        column.addView(prompt, LinearLayout.LayoutParams(MATCH_PARENT, WRAP_CONTENT))
        column.addView(row, LinearLayout.LayoutParams(MATCH_PARENT, WRAP_CONTENT))
        column.addView(status, LinearLayout.LayoutParams(MATCH_PARENT, WRAP_CONTENT))
        column.addView(scroll, LinearLayout.LayoutParams(MATCH_PARENT, 0, 1f))
        column.fitsSystemWindows = true
        return column
    }

    private fun button(text: Int, action: () -> Unit) = Button(this).apply {
        setText(text)
        setOnClickListener { action() }
    }

    private fun say(text: String) = runOnUiThread { status.text = text }

    private fun showDevice() {
        val s = speed
        val lines = listOf(
            engine?.device() ?: "",
            if (s == null || s.textNs == 0L) {
                getString(R.string.no_speed)
            } else {
                getString(
                    R.string.speed, s.promptTokens, s.promptNs / 1e6, s.textTokens,
                    s.textTokens * 1e9 / s.textNs,
                )
            },
            getString(R.string.thermal, THERMAL_NAMES.getOrElse(thermal) { thermal.toString() }),
        )
        AlertDialog.Builder(this)
            .setTitle(R.string.device)
            .setMessage(lines.joinToString("\n\n"))
            .setPositiveButton(R.string.close, null)
            .show()
    }

    // ---- work, one piece at a time on a thread of its own ----

    private fun work(piece: () -> Unit) {
        if (!busy.compareAndSet(false, true)) {
            Toast.makeText(this, R.string.busy, Toast.LENGTH_SHORT).show()
            return
        }
        tell.setText(R.string.stop)
        stopped = false
        worker.execute {
            try {
                piece()
            } catch (e: IOException) {
                say(if (stopped) getString(R.string.cancelled) else e.message ?: e.toString())
            } catch (e: RuntimeException) { // other apps' providers of documents throw such
                say(e.toString())
            }
            runOnUiThread {
                busy.set(false)
                tell.setText(R.string.tell)
            }
        }
    }

    private fun cancel() {
        stopped = true
        engine?.cancel()
    }

    private fun start() {
        if (thermal >= PowerManager.THERMAL_STATUS_SEVERE) {
            say(getString(R.string.hot))
            return
        }
        val text = prompt.text.toString()
        story.text = text
        work {
            telling = true
            val s = try {
                engine?.generate(text, MOST_TOKENS, seed++, this) ?: return@work
            } finally {
                telling = false
            }
            speed = s
            if (thermal >= PowerManager.THERMAL_STATUS_SEVERE) {
                say(getString(R.string.hot))
            } else if (s.textNs > 0) {
                say(
                    getString(
                        R.string.speed, s.promptTokens, s.promptNs / 1e6, s.textTokens,
                        s.textTokens * 1e9 / s.textNs,
                    ),
                )
            }
        }
    }

    /** Whole code points only; on the worker's thread. */
    override fun onText(utf8: ByteArray) {
        if (!visible || stopped) engine?.cancel() // it may have come before the generation began
        val text = String(utf8, Charsets.UTF_8)
        runOnUiThread {
            story.append(text)
            scroll.post { scroll.fullScroll(ScrollView.FOCUS_DOWN) }
        }
    }

    override fun onProgress(phase: Int, part: Double) {
        if (stopped) engine?.cancel() // it may have come before the loading began
        say(getString(R.string.loading, (part * 100).toInt()))
    }

    private fun onThermal(now: Int) {
        thermal = now
        if (now >= PowerManager.THERMAL_STATUS_SEVERE && telling) cancel()
    }

    // ---- models ----

    /** The demo model out of the app's assets, copied once for each version of the app. */
    private fun bundledModel(): File {
        @Suppress("DEPRECATION")
        val version = packageManager.getPackageInfo(packageName, 0).lastUpdateTime
        val folder = File(filesDir, "demo-$version")
        if (folder.isDirectory) return folder
        say(getString(R.string.copying))
        filesDir.listFiles { f -> f.name.startsWith("demo-") }?.forEach { it.deleteRecursively() }
        val part = fresh("part")
        Fulgur.copyAssets(assets, "model", part.path)
        if (!part.renameTo(folder)) throw IOException("$folder: cannot rename")
        return folder
    }

    private fun fresh(name: String): File {
        val folder = File(filesDir, name)
        folder.deleteRecursively()
        if (!folder.mkdirs()) throw IOException("$folder: cannot create")
        return folder
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        val tree = data?.data
        if (request == PICK && result == RESULT_OK && tree != null) {
            work {
                say(getString(R.string.copying))
                val folder = copyTree(tree)
                engine?.load(folder.path, this)
                say(getString(R.string.ready, tree.lastPathSegment ?: ""))
            }
        }
    }

    /** The library maps files, and a document is a stream: the files are copied, which can be stopped. */
    private fun copyTree(tree: Uri): File {
        val folder = fresh("picked")
        val children = DocumentsContract.buildChildDocumentsUriUsingTree(
            tree, DocumentsContract.getTreeDocumentId(tree),
        )
        val columns = arrayOf(
            DocumentsContract.Document.COLUMN_DOCUMENT_ID,
            DocumentsContract.Document.COLUMN_DISPLAY_NAME,
        )
        contentResolver.query(children, columns, null, null, null)?.use { rows ->
            while (rows.moveToNext()) {
                val name = File(rows.getString(1)).name // a provider must not lead out of the folder
                if (!name.endsWith(".json") && !name.endsWith(".safetensors")) continue
                val uri = DocumentsContract.buildDocumentUriUsingTree(tree, rows.getString(0))
                val input = contentResolver.openInputStream(uri)
                    ?: throw IOException("$name: cannot open")
                input.use { from -> File(folder, name).outputStream().use { copy(from, it) } }
            }
        }
        return folder
    }

    private fun copy(from: InputStream, to: OutputStream) {
        val buffer = ByteArray(1 shl 20)
        while (true) {
            val bytes = from.read(buffer)
            if (bytes < 0) return
            if (stopped) throw IOException()
            to.write(buffer, 0, bytes)
        }
    }

    private companion object {
        const val PICK = 1
        const val MOST_TOKENS = 400
        val THERMAL_NAMES =
            listOf("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
    }
}
