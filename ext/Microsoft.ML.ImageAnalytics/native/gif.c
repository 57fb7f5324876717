// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
#include "images.h"
#include <gif_lib.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  const uint8_t* data;
  size_t left;
  int ended;
} source;

static int read_bytes(GifFileType* gif, GifByteType* target, int count) {
  source* from = gif->UserData;
  size_t take = (size_t)count <= from->left ? (size_t)count : from->left;
  if (take < (size_t)count) from->ended = 1;
  memcpy(target, from->data, take);
  from->data += take;
  from->left -= take;
  return (int)take;
}

// Goes to the description of the first picture; the colour that is transparent, or -1.
static int to_first_image(GifFileType* gif, int* transparent) {
  *transparent = -1;
  for (;;) {
    GifRecordType record;
    if (DGifGetRecordType(gif, &record) == GIF_ERROR) return 0;
    if (record == IMAGE_DESC_RECORD_TYPE) return DGifGetImageDesc(gif) != GIF_ERROR;
    if (record != EXTENSION_RECORD_TYPE) return 0;
    int code;
    GifByteType* block;
    if (DGifGetExtension(gif, &code, &block) == GIF_ERROR) return 0;
    while (block) {
      GraphicsControlBlock control;
      if (code == GRAPHICS_EXT_FUNC_CODE && block[0] >= 4 && DGifExtensionToGCB(block[0], block + 1, &control) == GIF_OK)
        *transparent = control.TransparentColor;
      if (DGifGetExtensionNext(gif, &block) == GIF_ERROR) return 0;
    }
  }
}

// The canvas is the screen, and as much more as the first picture needs.
static void canvas(const GifFileType* gif, pi_info* info) {
  int right = gif->Image.Left + gif->Image.Width, bottom = gif->Image.Top + gif->Image.Height;
  info->width = gif->SWidth > right ? gif->SWidth : right;
  info->height = gif->SHeight > bottom ? gif->SHeight : bottom;
}

static GifFileType* open(source* from, int* transparent) {
  int error;
  GifFileType* gif = DGifOpen(from, read_bytes, &error);
  if (!gif) return NULL;
  if (to_first_image(gif, transparent) && gif->Image.Width > 0 && gif->Image.Height > 0) return gif;
  DGifCloseFile(gif, &error);
  return NULL;
}

int pi_gif_info(const uint8_t* data, size_t size, pi_info* info) {
  source from = {data, size, 0};
  int transparent, error;
  GifFileType* gif = open(&from, &transparent);
  if (!gif) return PI_CORRUPT;
  canvas(gif, info);
  DGifCloseFile(gif, &error);
  return PI_OK;
}

static void put_row(const GifByteType* line, const GifFileType* gif, const ColorMapObject* colors, int transparent, uint8_t* target) {
  for (int x = 0; x < gif->Image.Width; x++, target += 4) {
    int index = line[x];
    if (index == transparent) {
      memset(target, 0, 4);
      continue;
    }
    GifColorType color = {0, 0, 0};
    if (index < colors->ColorCount) color = colors->Colors[index];
    target[0] = color.Red;
    target[1] = color.Green;
    target[2] = color.Blue;
    target[3] = 255;
  }
}

int pi_gif_decode(const uint8_t* data, size_t size, const pi_info* info, uint8_t* pixels) {
  static const int FIRST[4] = {0, 4, 2, 1}, STEP[4] = {8, 8, 4, 2};
  source from = {data, size, 0};
  int transparent, error, result = PI_CORRUPT;
  GifFileType* gif = open(&from, &transparent);
  if (!gif) return from.ended ? PI_INCOMPLETE : PI_CORRUPT;
  pi_info seen = {0, 0, 0};
  canvas(gif, &seen);
  const ColorMapObject* colors = gif->Image.ColorMap ? gif->Image.ColorMap : gif->SColorMap;
  GifByteType* line = malloc((size_t)gif->Image.Width);
  if (line && colors && seen.width == info->width && seen.height == info->height) {
    size_t stride = (size_t)info->width * 4;
    int passes = gif->Image.Interlace ? 4 : 1;
    result = PI_OK;
    for (int pass = 0; pass < passes && result == PI_OK; pass++) {
      int first = passes == 4 ? FIRST[pass] : 0, step = passes == 4 ? STEP[pass] : 1;
      for (int y = first; y < gif->Image.Height; y += step) {
        if (DGifGetLine(gif, line, gif->Image.Width) == GIF_ERROR) {
          result = from.ended ? PI_INCOMPLETE : PI_CORRUPT;
          break;
        }
        put_row(line, gif, colors, transparent, pixels + (size_t)(gif->Image.Top + y) * stride + (size_t)gif->Image.Left * 4);
      }
    }
  }
  free(line);
  DGifCloseFile(gif, &error);
  return result;
}
