#include "families.h"

const struct kind *const families[] = {descriptor_kinds, process_kinds, socket_kinds, NULL};
