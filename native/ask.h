/* The commands by which a program of the job talks to init; protocol.h, COMMANDS. */
#pragma once

int ask_main(int argc, char **argv);
int awake_main(int argc, char **argv);
