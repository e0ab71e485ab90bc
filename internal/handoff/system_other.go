//go:build !unix

package handoff

import (
	"net"
	"syscall"
)

// Where descriptors are not inherited there is neither a predecessor nor a successor, and
// no service manager.

const inherits = false

var errTooManyFDs = errUnsupported

func claim(int) bool                                              { return false }
func isListening(int) bool                                        { return false }
func kindOf(int) Kind                                             { return File }
func setNonblock(int)                                             {}
func closeAll([]int)                                              {}
func areOfNet([]int) error                                        { return nil }
func identify(syscall.Conn) (socketID, error)                     { return socketID{}, errUnsupported }
func socketPair(int) (*net.UnixConn, int, error)                  { return nil, 0, errUnsupported }
func rightsOf([]int) []byte                                       { return nil }
func (*control) Read([]byte) (int, error)                         { return 0, errUnsupported }
func readable(uintptr) bool                                       { return true }
func shutdown(uintptr)                                            {}
func nearLimit([]int) bool                                        { return false }
func kill(int, syscall.Signal) error                              { return errUnsupported }
func (g *Generation) fork([]int, []string, bool) (process, error) { return nil, errUnsupported }
