// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
#include "images.h"
#include <setjmp.h>
#include <stdio.h>
#include <jpeglib.h>
#include <string.h>

typedef struct {
  struct jpeg_error_mgr base;  // first: libjpeg hands out a pointer to it
  jmp_buf back;
  int ended;
} errors;

static void fail(j_common_ptr codec) { longjmp(((errors*)codec->err)->back, 1); }

// Damaged data that a decoder can go on with are warnings: they are neither printed nor counted as errors.
static void ignore_message(j_common_ptr codec, int level) {
  (void)codec;
  (void)level;
}

static void ignore_output(j_common_ptr codec) { (void)codec; }

// At the end of the data the decoder is told that the image is over.
static boolean no_more(j_decompress_ptr codec) {
  static const JOCTET END[2] = {0xff, JPEG_EOI};
  ((errors*)codec->err)->ended = 1;
  codec->src->next_input_byte = END;
  codec->src->bytes_in_buffer = 2;
  return TRUE;
}

// Some files of a few hundred bytes ask for thousands of passes over a large image.
static void limit_passes(j_common_ptr codec) {
  if (((j_decompress_ptr)codec)->input_scan_number > 500) longjmp(((errors*)codec->err)->back, 1);
}

static void begin(j_decompress_ptr codec, struct jpeg_progress_mgr* progress, const uint8_t* data, size_t size) {
  jpeg_create_decompress(codec);
  memset(progress, 0, sizeof *progress);
  progress->progress_monitor = limit_passes;
  codec->progress = progress;
  jpeg_mem_src(codec, data, size);
  codec->src->fill_input_buffer = no_more;
  jpeg_read_header(codec, TRUE);
}

static void prepare(j_decompress_ptr codec, errors* handlers) {
  memset(codec, 0, sizeof *codec);
  codec->err = jpeg_std_error(&handlers->base);
  handlers->base.error_exit = fail;
  handlers->base.emit_message = ignore_message;
  handlers->base.output_message = ignore_output;
  handlers->ended = 0;
}

int pi_jpeg_info(const uint8_t* data, size_t size, pi_info* info) {
  struct jpeg_decompress_struct codec;
  struct jpeg_progress_mgr progress;
  errors handlers;
  prepare(&codec, &handlers);
  if (setjmp(handlers.back)) {
    jpeg_destroy_decompress(&codec);
    return PI_CORRUPT;
  }
  begin(&codec, &progress, data, size);
  info->width = (int32_t)codec.image_width;
  info->height = (int32_t)codec.image_height;
  info->grey = codec.num_components == 1;
  jpeg_destroy_decompress(&codec);
  return PI_OK;
}

// Inverted CMYK, as all writers store it: each colour is what black lets through.
static void from_cmyk(uint8_t* row, int32_t width) {
  for (int32_t x = 0; x < width; x++, row += 4) {
    for (int c = 0; c < 3; c++) row[c] = pi_scale(row[c], row[3]);
    row[3] = 255;
  }
}

int pi_jpeg_decode(const uint8_t* data, size_t size, const pi_info* info, uint8_t* pixels) {
  struct jpeg_decompress_struct codec;
  struct jpeg_progress_mgr progress;
  errors handlers;
  prepare(&codec, &handlers);
  if (setjmp(handlers.back)) {
    jpeg_destroy_decompress(&codec);
    return PI_CORRUPT;
  }
  begin(&codec, &progress, data, size);
  if ((int32_t)codec.image_width != info->width || (int32_t)codec.image_height != info->height) fail((j_common_ptr)&codec);
  int cmyk = codec.jpeg_color_space == JCS_CMYK || codec.jpeg_color_space == JCS_YCCK;
  codec.out_color_space = cmyk ? JCS_CMYK : JCS_EXT_RGBA;
  codec.dct_method = JDCT_ISLOW;
  codec.do_fancy_upsampling = TRUE;
  jpeg_start_decompress(&codec);
  size_t stride = (size_t)info->width * 4;
  if (codec.output_components != 4) fail((j_common_ptr)&codec);
  while (codec.output_scanline < codec.output_height) {
    JSAMPROW rows[4];
    JDIMENSION first = codec.output_scanline, count = codec.output_height - first;
    if (count > 4) count = 4;
    for (JDIMENSION i = 0; i < count; i++) rows[i] = pixels + (first + i) * stride;
    JDIMENSION done = jpeg_read_scanlines(&codec, rows, count);
    if (done == 0) fail((j_common_ptr)&codec);
    if (cmyk)
      for (JDIMENSION i = 0; i < done; i++) from_cmyk(rows[i], info->width);
  }
  jpeg_finish_decompress(&codec);
  jpeg_destroy_decompress(&codec);
  return handlers.ended ? PI_INCOMPLETE : PI_OK;
}
