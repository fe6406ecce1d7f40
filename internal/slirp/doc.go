// Package slirp has the program act as slirp4netns(1), version 1.2: its command line, its protocol
// towards the program that started it (ready and exit descriptors) and its API socket.
//
// It moves no packets: a command line becomes a config.Config, the very value a command line of
// pasta becomes, and the API's requests become operations on forwarding rules. What slirp4netns
// does on the network and pasta does not is in the fields of config.Slirp.
//
// Texts of help, version, errors and API answers are an interface: programs look for words in them.
package slirp
