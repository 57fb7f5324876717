// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// The two functions that the managed side calls. Everything is checked here against the limit before a decoder that
// allocates by width and height is started.
#include "images.h"
#include <string.h>

typedef struct {
  int (*info)(const uint8_t*, size_t, pi_info*);
  int (*decode)(const uint8_t*, size_t, const pi_info*, uint8_t*);
} format;

static const format PNG = {pi_png_info, pi_png_decode};
static const format JPEG = {pi_jpeg_info, pi_jpeg_decode};
static const format WEBP = {pi_webp_info, pi_webp_decode};
static const format GIF = {pi_gif_info, pi_gif_decode};

static const format* find(const uint8_t* data, size_t size) {
  if (size >= 8 && memcmp(data, "\x89PNG\r\n\x1a\n", 8) == 0) return &PNG;
  if (size >= 3 && memcmp(data, "\xff\xd8\xff", 3) == 0) return &JPEG;
  if (size >= 12 && memcmp(data, "RIFF", 4) == 0 && memcmp(data + 8, "WEBP", 4) == 0) return &WEBP;
  if (size >= 6 && (memcmp(data, "GIF87a", 6) == 0 || memcmp(data, "GIF89a", 6) == 0)) return &GIF;
  return NULL;
}

PI_EXPORT int peft_image_info(const uint8_t* data, size_t size, int64_t max_pixels, pi_info* info) {
  const format* kind = find(data, size);
  memset(info, 0, sizeof *info);
  if (!kind) return PI_UNKNOWN;
  int result = kind->info(data, size, info);
  if (result != PI_OK) return result;
  if (info->width <= 0 || info->height <= 0) return PI_CORRUPT;
  return (int64_t)info->width * info->height > max_pixels ? PI_TOO_LARGE : PI_OK;
}

// pixels: width * height * 4 zeros, by the numbers that peft_image_info gave for the same data.
PI_EXPORT int peft_image_decode(const uint8_t* data, size_t size, const pi_info* info, uint8_t* pixels) {
  const format* kind = find(data, size);
  return kind ? kind->decode(data, size, info, pixels) : PI_UNKNOWN;
}
