//go:build unix

package gracenet

import (
	"errors"
	"os"
	"syscall"

	"github.com/facebookgo/grace/internal/handoff"
)

// dupFile copies a descriptor. It does not touch the original's mode, as Fd
// would.
func dupFile(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var dup int
	var dupErr error
	err = raw.Control(func(fd uintptr) {
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		if dup, dupErr = syscall.Dup(int(fd)); dupErr == nil {
			syscall.CloseOnExec(dup)
		}
	})
	if err = errors.Join(err, os.NewSyscallError("dup", dupErr)); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(dup), f.Name()), nil
}

// A fileID is the same for all paths of one file.
type fileID struct{ Dev, Ino uint64 }

func identify(path string) (fileID, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return fileID{}, err
	}
	return fileID{uint64(st.Dev), uint64(st.Ino)}, nil
}

// onlyIPv6 reports whether a socket of IPv6 does without IPv4 (IPV6_V6ONLY).
func onlyIPv6(s *handoff.Socket) bool {
	c, ok := s.Open.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var only int
	raw.Control(func(fd uintptr) {
		only, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_V6ONLY)
	})
	return err == nil && only != 0
}
