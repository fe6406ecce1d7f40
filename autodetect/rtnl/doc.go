// Package rtnl is the little of rtnetlink(7) that fusilli needs: one socket, dumps and
// requests on it, and views of the link, address and route messages that come back.
//
// It ends at the message. Which route is the right one is for package autodetect to say,
// what a guest gets for package netconf. Messages stay as the kernel sent them, as
// payload bytes without the nlmsghdr, so that whoever copies one loses no attribute;
// the views read the few fields they need and trust no length in them.
package rtnl
