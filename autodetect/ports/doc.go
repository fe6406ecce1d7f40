// Package ports finds out which ports of a network namespace are bound: those with a TCP socket
// that listens and those with a UDP socket that is not connected, on whatever address.
//
// It asks the kernel's socket diagnostics (sock_diag(7)), which pass over sockets in other states
// without a word, and reads the tables of proc_net(5) where those are missing (a kernel without the
// inet_diag module, a sandbox that forbids it). Neither needs privileges. What a port is for, and
// what follows from a change, is for others.
package ports
