// Package qrap connects QEMU before 7.2, which cannot connect to a UNIX stream socket by itself, to
// passt: it connects, and executes QEMU with the socket as a descriptor. Unless told which
// descriptor and which QEMU, it also changes QEMU's command line to have one network card, at that
// socket.
//
// Its command line and its results are those of the program of that name that came with passt.
package qrap
