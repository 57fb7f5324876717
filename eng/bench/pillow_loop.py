# Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
"""The Python side of the image benchmark: Pillow decodes and resizes, in as many processes as asked for.

  pillow_loop.py make FOLDER                                     writes the pictures
  pillow_loop.py run FOLDER KIND WORK WORKERS SECONDS OUT        prints images a second; OUT: the bytes of the first results
"""
import glob
import json
import multiprocessing
import os
import sys
import time

from PIL import Image, __version__


def make(folder):
    os.makedirs(folder, exist_ok=True)
    for i in range(24):
        width, height = (500, 375) if i % 3 else (375, 500)
        noise = Image.effect_noise((width // 8 + 1, height // 8 + 1), 120).convert("RGB").resize((width, height), Image.BICUBIC)
        shapes = Image.effect_mandelbrot((width, height), (-2 + i * 0.01, -1.2, 0.8, 1.2), 40 + i).convert("RGB")
        picture = Image.blend(noise, shapes, 0.5)
        for kind, options in {"jpg": {"quality": 90}, "png": {}, "webp": {"quality": 80}}.items():
            picture.save(f"{folder}/{i:02}.{kind}", **options)


def decode_resize(path):
    return Image.open(path).convert("RGB").resize((224, 224), Image.BICUBIC)


def model_input(path):
    import numpy

    image = Image.open(path).convert("RGB")
    width, height = image.size
    size = (256, int(256 * height / width)) if width < height else (int(256 * width / height), 256)
    image = image.resize(size, Image.BICUBIC)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    pixels = numpy.asarray(image.crop((left, top, left + 224, top + 224))).astype(numpy.float32) * numpy.float32(1 / 255)
    pixels = (pixels - numpy.array([0.485, 0.456, 0.406], numpy.float32)) / numpy.array([0.229, 0.224, 0.225], numpy.float32)
    return numpy.ascontiguousarray(pixels.transpose(2, 0, 1))


def loop(task):
    paths, work, seconds = task
    step = decode_resize if work == "resize" else model_input
    for path in paths:
        step(path)
    done, start, cpu = 0, time.perf_counter(), time.process_time()
    while True:
        for path in paths:
            step(path)
        done += len(paths)
        passed = time.perf_counter() - start
        if passed >= seconds:
            return done / passed, done, time.process_time() - cpu


def run(folder, kind, work, workers, seconds, out):
    paths = sorted(glob.glob(f"{folder}/*.{kind}"))
    with open(out, "wb") as file:
        for path in paths:
            file.write(decode_resize(path).tobytes())
    tasks = [(paths, work, seconds)] * workers
    if workers == 1:
        rates = [loop(tasks[0])]
    else:
        with multiprocessing.Pool(workers) as pool:
            rates = pool.map(loop, tasks, chunksize=1)
    print(json.dumps({"PerSecond": sum(r[0] for r in rates), "PerCpuSecond": sum(r[1] for r in rates) / sum(r[2] for r in rates), "Version": f"Pillow {__version__}"}))


if sys.argv[1] == "make":
    make(sys.argv[2])
else:
    run(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]), float(sys.argv[6]), sys.argv[7])
