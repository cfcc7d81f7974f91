#pragma once

#include "../kinds.h"

extern const struct kind descriptor_kinds[], memory_kinds[], process_kinds[], socket_kinds[];
