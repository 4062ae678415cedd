// What the kernels for compute capability 9.0 are written with, beside plain loops: 1 where they differ.
#pragma once

int products();
int together();
