// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// What the decoders of this folder share. Pixels are R, G, B, A of a byte each, rows from the top, nothing between them;
// colours are multiplied by alpha.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum {
  PI_OK = 0,
  PI_INCOMPLETE = 1,  // the data end early; what came before is in the pixels, the rest is 0
  PI_UNKNOWN = 2,     // not one of the formats
  PI_CORRUPT = 3,
  PI_TOO_LARGE = 4,
};

typedef struct {
  int32_t width, height;
  int32_t grey;  // one channel in the file, no transparency
} pi_info;

#define PI_EXPORT __attribute__((visibility("default")))

int pi_png_info(const uint8_t* data, size_t size, pi_info* info);
int pi_png_decode(const uint8_t* data, size_t size, const pi_info* info, uint8_t* pixels);
int pi_jpeg_info(const uint8_t* data, size_t size, pi_info* info);
int pi_jpeg_decode(const uint8_t* data, size_t size, const pi_info* info, uint8_t* pixels);
int pi_webp_info(const uint8_t* data, size_t size, pi_info* info);
int pi_webp_decode(const uint8_t* data, size_t size, const pi_info* info, uint8_t* pixels);
int pi_gif_info(const uint8_t* data, size_t size, pi_info* info);
int pi_gif_decode(const uint8_t* data, size_t size, const pi_info* info, uint8_t* pixels);

// c * a / 255, rounded.
static inline uint8_t pi_scale(unsigned c, unsigned a) {
  unsigned t = c * a + 128;
  return (uint8_t)((t + (t >> 8)) >> 8);
}
