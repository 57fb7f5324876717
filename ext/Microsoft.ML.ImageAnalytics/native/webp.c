// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
#include "images.h"
#include <stdlib.h>
#include <string.h>
#include <webp/decode.h>
#include <webp/demux.h>

int pi_webp_info(const uint8_t* data, size_t size, pi_info* info) {
  WebPBitstreamFeatures features;
  if (WebPGetFeatures(data, size, &features) != VP8_STATUS_OK) return PI_CORRUPT;
  info->width = features.width;
  info->height = features.height;
  return PI_OK;
}

// One picture into a place of the pixels.
static int decode_still(const uint8_t* data, size_t size, int width, int height, uint8_t* pixels, size_t stride) {
  WebPDecoderConfig config;
  if (!WebPInitDecoderConfig(&config)) return PI_CORRUPT;
  if (WebPGetFeatures(data, size, &config.input) != VP8_STATUS_OK || config.input.has_animation ||
      config.input.width != width || config.input.height != height)
    return PI_CORRUPT;
  config.output.colorspace = MODE_rgbA;
  config.output.is_external_memory = 1;
  config.output.u.RGBA.rgba = pixels;
  config.output.u.RGBA.stride = (int)stride;
  config.output.u.RGBA.size = stride * (size_t)(height - 1) + (size_t)width * 4;
  switch (WebPDecode(data, size, &config)) {
    case VP8_STATUS_OK: return PI_OK;
    case VP8_STATUS_NOT_ENOUGH_DATA:
    case VP8_STATUS_SUSPENDED: return PI_INCOMPLETE;
    case VP8_STATUS_OUT_OF_MEMORY: return PI_TOO_LARGE;
    default: return PI_CORRUPT;
  }
}

// The first picture of an animation, laid at its place on an empty canvas.
static int decode_first(const uint8_t* data, size_t size, const pi_info* info, uint8_t* pixels) {
  WebPData all = {data, size};
  WebPDemuxState state;
  WebPDemuxer* parts = WebPDemuxPartial(&all, &state);
  if (!parts) return PI_CORRUPT;
  WebPIterator frame;
  int result = PI_CORRUPT;
  if (WebPDemuxGetFrame(parts, 1, &frame)) {
    if (frame.x_offset >= 0 && frame.y_offset >= 0 && frame.width > 0 && frame.height > 0 &&
        frame.width <= info->width - frame.x_offset && frame.height <= info->height - frame.y_offset) {
      size_t stride = (size_t)info->width * 4;
      result = decode_still(frame.fragment.bytes, frame.fragment.size, frame.width, frame.height,
                            pixels + (size_t)frame.y_offset * stride + (size_t)frame.x_offset * 4, stride);
    }
    WebPDemuxReleaseIterator(&frame);
  } else if (state < WEBP_DEMUX_DONE) {
    result = PI_INCOMPLETE;
  }
  WebPDemuxDelete(parts);
  return result;
}

int pi_webp_decode(const uint8_t* data, size_t size, const pi_info* info, uint8_t* pixels) {
  WebPBitstreamFeatures features;
  if (WebPGetFeatures(data, size, &features) != VP8_STATUS_OK) return PI_CORRUPT;
  if (features.width != info->width || features.height != info->height) return PI_CORRUPT;
  return features.has_animation ? decode_first(data, size, info, pixels)
                                : decode_still(data, size, info->width, info->height, pixels, (size_t)info->width * 4);
}
