// The table of kernels of one translation unit.
#pragma once

#include "body_attention.h"
#include "body_choose.h"
#include "body_convert.h"
#include "body_linear.h"
#include "body_math.h"
#include "body_memory.h"

#define DYNKERN_TABLE(name)                \
  static const Kernels table = {           \
      name,                                \
      DYNKERN_ISA::linear,                 \
      DYNKERN_ISA::to_input,               \
      DYNKERN_ISA::layer_norm,             \
      DYNKERN_ISA::active_groups,          \
      DYNKERN_ISA::decode_attention,       \
      DYNKERN_ISA::prefill_attention,      \
      DYNKERN_ISA::prefill_scratch,        \
      DYNKERN_ISA::dot,                    \
      DYNKERN_ISA::widen,                  \
      DYNKERN_ISA::narrow,                 \
      DYNKERN_ISA::add,                    \
      DYNKERN_ISA::draw_layers,            \
      DYNKERN_ISA::draw_gates,             \
      DYNKERN_ISA::sample,                 \
      DYNKERN_ISA::sample_scratch_floats,  \
      DYNKERN_ISA::sample_scratch_indices, \
      DYNKERN_ISA::fingerprint,            \
      DYNKERN_ISA::read_block,             \
  };                                       \
  return &table
