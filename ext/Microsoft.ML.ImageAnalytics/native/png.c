// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
#include "images.h"
#include <png.h>
#include <string.h>

typedef struct {
  const uint8_t* data;
  size_t left;
  int ended, alpha;
} source;

static void read_bytes(png_structp png, png_bytep target, size_t count) {
  source* from = png_get_io_ptr(png);
  if (count > from->left) {
    from->ended = 1;
    png_error(png, "end of data");
  }
  memcpy(target, from->data, count);
  from->data += count;
  from->left -= count;
}

static void fail(png_structp png, png_const_charp message) {
  (void)message;
  png_longjmp(png, 1);
}

static void ignore(png_structp png, png_const_charp message) {
  (void)png;
  (void)message;
}

static uint32_t big_endian(const uint8_t* p) {
  return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

int pi_png_info(const uint8_t* data, size_t size, pi_info* info) {
  if (size < 33 || memcmp(data + 12, "IHDR", 4) != 0) return PI_CORRUPT;
  uint32_t width = big_endian(data + 16), height = big_endian(data + 20);
  if (width == 0 || height == 0 || width > PNG_UINT_31_MAX || height > PNG_UINT_31_MAX) return PI_CORRUPT;
  info->width = (int32_t)width;
  info->height = (int32_t)height;
  info->grey = data[25] == PNG_COLOR_TYPE_GRAY;
  return PI_OK;
}

static void multiply(uint8_t* pixels, size_t count) {
  for (size_t i = 0; i < count; i++, pixels += 4)
    for (int c = 0; c < 3; c++) pixels[c] = pi_scale(pixels[c], pixels[3]);
}

__attribute__((noinline)) static void read_pixels(png_structp png, png_infop details, source* from, const pi_info* info, uint8_t* pixels) {
  png_set_read_fn(png, from, read_bytes);
  png_set_user_limits(png, (png_uint_32)info->width, (png_uint_32)info->height);
  png_set_chunk_malloc_max(png, 8 << 20);
  png_set_chunk_cache_max(png, 64);
  png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, 0);
  png_read_info(png, details);
  int type = png_get_color_type(png, details);
  from->alpha = (type & PNG_COLOR_MASK_ALPHA) || png_get_valid(png, details, PNG_INFO_tRNS);
  png_set_expand(png);
  png_set_strip_16(png);
  if (!(type & PNG_COLOR_MASK_COLOR)) png_set_gray_to_rgb(png);
  png_set_add_alpha(png, 255, PNG_FILLER_AFTER);
  int passes = png_set_interlace_handling(png);
  png_read_update_info(png, details);
  size_t stride = (size_t)info->width * 4;
  if (png_get_rowbytes(png, details) != stride) png_error(png, "layout");
  for (int pass = 0; pass < passes; pass++)
    for (int32_t y = 0; y < info->height; y++) png_read_row(png, pixels + y * stride, NULL);
  png_read_end(png, NULL);
}

// In a function of its own, so that nothing else lives across setjmp.
__attribute__((noinline)) static int try_read(png_structp png, png_infop details, source* from, const pi_info* info, uint8_t* pixels) {
  if (setjmp(png_jmpbuf(png))) return PI_CORRUPT;
  read_pixels(png, details, from, info, pixels);
  return PI_OK;
}

int pi_png_decode(const uint8_t* data, size_t size, const pi_info* info, uint8_t* pixels) {
  source from = {data, size, 0, 0};
  int result = PI_TOO_LARGE;
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, NULL, fail, ignore);
  png_infop details = png ? png_create_info_struct(png) : NULL;
  if (details) result = try_read(png, details, &from, info, pixels);
  if (result != PI_OK && from.ended) result = PI_INCOMPLETE;
  if (png) png_destroy_read_struct(&png, &details, NULL);
  if (from.alpha) multiply(pixels, (size_t)info->width * info->height);
  return result;
}
