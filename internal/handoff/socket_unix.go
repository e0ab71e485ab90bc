//go:build unix

package handoff

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
)

// open takes a descriptor over and makes of it what it is.
func (s *Socket) open(fd int) {
	s.leave.Store(true) // the predecessor's, until we are ready
	name := s.Name
	if name == "" {
		name = "descriptor " + strconv.Itoa(fd)
	}
	listening, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	if err == nil {
		// A stranger that shares the socket may have made it blocking.
		syscall.SetNonblock(fd, true)
	}
	f := os.NewFile(uintptr(fd), name)
	s.Kind, s.Open = File, f
	if err != nil {
		return
	}
	if listening != 0 {
		if l, err := net.FileListener(f); err == nil {
			s.Kind, s.Open = Listener, l
		}
	} else if typ, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE); err == nil && typ == syscall.SOCK_DGRAM {
		if c, err := net.FilePacketConn(f); err == nil {
			s.Kind, s.Open = Packet, c
		}
	}
	if s.Kind != File {
		f.Close()
	}
}

// Describe says in words what a socket is, for an error.
func (s *Socket) Describe() string {
	what := string(s.Kind)
	switch s.Kind {
	case Listener:
		what = "a listening socket"
	case Packet:
		what = "a datagram socket"
	case File:
		what = "a file"
		if info, err := s.File().Stat(); err != nil {
			what = err.Error()
		} else if info.Mode()&os.ModeSocket != 0 {
			what = "a socket that does not listen"
		} else if info.Mode()&os.ModeNamedPipe != 0 {
			what = "a pipe"
		} else if info.Mode()&os.ModeDevice != 0 {
			what = "a device"
		} else if info.IsDir() {
			what = "a directory"
		}
	}
	return what
}

// Descriptor returns the number under which the socket was inherited, or -1.
func (s *Socket) Descriptor() int {
	if s.index < 0 {
		return -1
	}
	return firstFD + s.index
}

// A socketID is the same for all descriptors of one socket.
type socketID struct {
	dev, ino uint64
	bound    string // where sockets have no inode number, on macOS and the BSDs: descriptor and address
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
