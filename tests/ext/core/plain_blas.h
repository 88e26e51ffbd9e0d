#pragma once
#include "cpu/blas.h"

ssdd::cpu::blas::Table plain_blas();
