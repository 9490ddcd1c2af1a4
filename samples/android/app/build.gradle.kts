plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

// Libraries built by tools/target-deps android-arm64. glslang of this machine is searched unless named.
val deps = providers.gradleProperty("fulgur.deps")
    .orElse(rootDir.resolve("../../build/deps-android-arm64").canonicalPath)
val glslang = providers.gradleProperty("fulgur.glslang")

android {
    namespace = "org.fulgur.sample"
    compileSdk = 34
    ndkVersion = "26.3.11579264"

    defaultConfig {
        applicationId = "org.fulgur.sample"
        minSdk = 29
        targetSdk = 34
        versionCode = 1
        versionName = "0.1.0"
        ndk { abiFilters += "arm64-v8a" }
        externalNativeBuild {
            cmake {
                // Debug versions are optimised too: the processor computes where no GPU can.
                arguments += listOf("-DFULGUR_DEPS=${deps.get()}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
                if (glslang.isPresent) arguments += "-DFULGUR_GLSLANG=${glslang.get()}"
            }
        }
    }
    externalNativeBuild {
        cmake {
            path = file("src/main/cpp/CMakeLists.txt")
            version = "3.22.1"
        }
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    kotlinOptions {
        jvmTarget = "17"
        allWarningsAsErrors = true
    }
    // The demo model goes into the app as assets/model.
    sourceSets["main"].assets.srcDir(layout.buildDirectory.dir("demo"))
}

val demo by tasks.registering(Copy::class) {
    from("$rootDir/../demo-model") {
        include("config.json", "tokenizer.json", "*.safetensors", "*.index.json")
        exclude("golden.safetensors")
    }
    into(layout.buildDirectory.dir("demo/model"))
}
tasks.named("preBuild") { dependsOn(demo) }
