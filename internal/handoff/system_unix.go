//go:build unix

package handoff

import (
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
)

// What the operating system does for this package; system_other.go has the same for those
// on which no descriptors are inherited.

// inherits says that a process inherits descriptors.
const inherits = true

// claim makes a descriptor close-on-exec, and reports whether it was inherited: then it
// was not (exec would have closed it), and the Go runtime's own ones are.
func claim(fd int) bool {
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
	if errno != 0 || flags&syscall.FD_CLOEXEC != 0 {
		return false
	}
	syscall.CloseOnExec(fd)
	return true
}

func isListening(fd int) bool {
	is, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	return err == nil && is != 0
}

// kindOf says what a descriptor is. A stranger that shares a socket may have made it
// blocking, which is undone.
func kindOf(fd int) Kind {
	typ, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE)
	if err != nil {
		return File
	}
	setNonblock(fd)
	switch {
	case isListening(fd):
		return Listener
	case typ == syscall.SOCK_DGRAM:
		return Packet
	}
	return File
}

// areOfNet returns why package net could make no connection of a descriptor, such as of a
// pipe, or a network that it does not know.
func areOfNet(fds []int) error {
	for _, fd := range fds {
		if _, err := syscall.Getsockname(fd); err != nil {
			return os.NewSyscallError("getsockname", err)
		}
	}
	return nil
}

func setNonblock(fd int) { syscall.SetNonblock(fd, true) }

func closeAll(fds []int) {
	for _, fd := range fds {
		syscall.Close(fd)
	}
}

func identify(c syscall.Conn) (id socketID, err error) {
	err = withFDs([]syscall.Conn{c}, func(fds []int) error {
		var st syscall.Stat_t
		if err := syscall.Fstat(fds[0], &st); err != nil {
			return os.NewSyscallError("fstat", err)
		}
		id = socketID{dev: uint64(st.Dev), ino: uint64(st.Ino)}
		if id.ino == 0 {
			addr, err := syscall.Getsockname(fds[0])
			if err != nil {
				return os.NewSyscallError("getsockname", err)
			}
			id.bound = fmt.Sprintf("%d %T%+v", fds[0], addr, addr) // several may share an address
		}
		return nil
	})
	return id, err
}

// socketPair returns one end of a new pair of unix sockets, and the descriptor of the
// other end, which is the caller's to close.
func socketPair(typ int) (*net.UnixConn, int, error) {
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, typ, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, 0, os.NewSyscallError("socketpair", err)
	}
	c, err := newUnixConn(fds[0])
	if err != nil {
		syscall.Close(fds[1])
		return nil, 0, err
	}
	return c, fds[1], nil
}

// errTooManyFDs says that too many descriptors are on their way.
const errTooManyFDs = syscall.ETOOMANYREFS

// rightsOf returns the control message with which descriptors travel.
func rightsOf(fds []int) []byte {
	if len(fds) == 0 {
		return nil
	}
	return syscall.UnixRights(fds...)
}

func parseRights(oob []byte) (all []int, err error) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	for i := 0; i < len(messages) && err == nil; i++ {
		var fds []int
		fds, err = syscall.ParseUnixRights(&messages[i])
		all = append(all, fds...)
	}
	return all, err
}

// Read reads, for receive, and collects the descriptors that come with the bytes.
func (c *control) Read(b []byte) (int, error) {
	oob := make([]byte, syscall.CmsgSpace(4*maxFDs))
	n, oobn, _, _, err := c.conn.ReadMsgUnix(b, oob)
	fds, rightsErr := parseRights(oob[:oobn])
	c.rights = append(c.rights, fds...)
	if err == nil {
		err = rightsErr
	}
	return n, err
}

// readable reports whether a non-blocking socket has something to read, or its other end
// is closed, and leaves it there.
func readable(fd uintptr) bool {
	for {
		_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK)
		if err != syscall.EINTR {
			return err != syscall.EAGAIN
		}
	}
}

func shutdown(fd uintptr) { syscall.Shutdown(int(fd), syscall.SHUT_RDWR) }

// sparedFDs is how many descriptors shall be left when connections are taken: to
// serve them takes some.
const sparedFDs = 16

// nearLimit reports whether new descriptors come near to the process's limit. A
// new one gets the lowest number that is free.
func nearLimit(fds []int) bool {
	var limit syscall.Rlimit
	if len(fds) == 0 || syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return false
	}
	return uint64(slices.Max(fds)+sparedFDs) >= uint64(limit.Cur)
}

func kill(pid int, sig syscall.Signal) error { return syscall.Kill(pid, sig) }
