// Single operations of the kernels, each with a case of its own.
#pragma once

#include <string>

#include "arrays.h"

void real_sweep(Reader& in, Writer& out);
void mean_field(Reader& in, Writer& out);

// Runs an operation on the arrays of the file `from` and writes its results to `to`; false where none has this name.
bool run_operation(const std::string& name, const char* from, const char* to);
