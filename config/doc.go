// Package config turns a command line into one checked, immutable value.
//
// It is pure: text in, a *Config or an error out. It opens no file, resolves no name, looks
// at no interface and keeps no state, so each rule has a row in a table test. What depends on
// the host (does the interface exist, who is the user called "nobody", which ports are
// ephemeral) is left visibly unset for those who find out, or is an argument.
//
// # From words to a value
//
//	argv -> normalise -> urfave/cli -> one setter an option, in order -> check -> Config
//
// Users call with the syntax of getopt_long(3): clusters, attached values, abbreviated long
// options, an end at the first word that is no option. The library has Go's syntax. So
// [normalise] first rewrites the words into the one form both understand, --long=value, and
// everything else follows from the table in options.go: what normalise knows, the library's
// flags and the help text.
//
// Options act in the order they are given: a later one replaces or cancels an earlier one,
// and --help or --version end the reading where they stand, whatever follows.
//
// # Port specifiers
//
// The values of -t -u -T -U are parsed here too ([PortSpec]), but which rules they make depends
// on what the host can do, so that is a function of its own: [Rules].
//
// Texts of errors and warnings are an interface: other programs match some of them. They are
// kept to the letter.
package config
