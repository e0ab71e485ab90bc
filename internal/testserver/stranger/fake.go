//go:build unix

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/testserver/kit"
)

// The messages of the control socket as package handoff has them: the length of
// the body in four bytes, the kind in two, the number of descriptors in two,
// then the body in JSON. They are written by hand here, so that a change of
// the format does not go unnoticed: two versions of the library must understand
// each other.
const (
	hello    = 1
	ready    = 5
	conns    = 6
	taken    = 7
	stepDown = 8
)

// fake is a successor that has read the environment and opened the control
// socket, and then does what -play says.
func fake(f *kit.Flags) error {
	control, err := openControl()
	if err != nil {
		return err
	}
	serves := func() error {
		listeners, err := f.Listeners()
		if err != nil {
			return err
		}
		var addrs []net.Addr
		for _, l := range listeners {
			addrs = append(addrs, l.Addr())
			if f.Mode == "http" {
				go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					fmt.Fprint(w, os.Getpid())
				}))
				continue
			}
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go kit.Echo(c)
				}
			}()
		}
		control.send(ready, "")
		kit.Ready(addrs...)
		return nil
	}

	switch f.Play {
	case "silence":
		// Neither of this library nor of the other, or just very slow.
	case "nonsense":
		control.write([]byte(strings.Repeat("nonsense", 1000)))
	case "too-large":
		control.write([]byte{0xff, 0xff, 0xff, 0xff, 0, ready, 0, 0})
	case "half":
		control.write([]byte{0, 0, 0, 100, 0, ready, 0, 0, '{'})
		control.close()
	case "closed":
		control.close()
	case "half-hang":
		control.write([]byte{0, 0, 0, 100, 0, ready, 0, 0, '{'})
	case "half-exit":
		control.write([]byte{0, 0, 0, 100, 0, ready, 0, 0, '{'})
		os.Exit(3)
	case "trickle":
		go control.trickle()
	case "flood":
		go control.flood()
	case "descriptors":
		for range 100 {
			control.send(1000, "", 0, 1, 2)
		}
	case "step-down":
		control.send(hello, `{"Takes":true}`)
		control.send(stepDown, `{"Stopping":true}`)
		os.Exit(0)
	case "hello-exit":
		control.send(hello, `{"Takes":true}`)
		os.Exit(3)
	case "hello-hang":
		control.send(hello, `{"Takes":true}`)
	case "ready-kill":
		control.send(hello, `{"Takes":true}`)
		control.send(ready, "")
		kit.Die()
	case "ready-nonsense", "ready-half", "ready-close", "ready-trickle", "ready-flood", "ready-twice":
		// It takes nothing over, so that what it holds is its own.
		control.send(hello, `{"Takes":`+strconv.FormatBool(f.Play == "ready-nonsense")+`}`)
		if err := serves(); err != nil {
			return err
		}
		switch f.Play {
		case "ready-nonsense":
			control.write([]byte(strings.Repeat("nonsense", 1000)))
		case "ready-half":
			control.write([]byte{0, 0, 0, 100, 0, ready, 0, 0, '{'})
		case "ready-close":
			control.close()
		case "ready-trickle":
			go control.trickle()
		case "ready-flood":
			go control.flood()
		case "ready-twice":
			control.send(ready, "")
		}
	case "newer":
		control.send(1000, `{"Knows":"more"}`, 0, 1, 2)
		control.send(hello, `{"Takes":false,"Colour":"green"}`, 0)
		control.send(1001, strings.Repeat(" ", 1<<19))
		if err := serves(); err != nil {
			return err
		}
	case "take-kill", "take-exit", "take-refuse", "take-hang", "take-other", "take-half", "take-nonsense", "take-close":
		control.send(hello, `{"Takes":true}`)
		if err := serves(); err != nil {
			return err
		}
		answer, fds, err := control.receiveConns()
		if err != nil {
			return err
		}
		kit.Event("received", "connections", len(fds))
		switch f.Play {
		case "take-kill":
			kit.Die()
		case "take-exit":
			os.Exit(3)
		case "take-refuse":
			answer.send(taken, `{"Error":"played"}`)
		case "take-other":
			answer.send(ready, "")
		case "take-half":
			answer.write([]byte{0, 0, 0, 100, 0, taken, 0, 0, '{'})
		case "take-nonsense":
			answer.write([]byte(strings.Repeat("nonsense", 1000)))
		case "take-close":
			answer.close()
		}
		for _, fd := range fds {
			syscall.Close(fd)
		}
	default:
		return fmt.Errorf("cannot play %q", f.Play)
	}

	kit.Event("playing", "play", f.Play)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	<-signals
	control.send(stepDown, "")
	return nil
}

// A control is the successor's end of the control socket, blocking.
type control int

func openControl() (control, error) {
	fd, err := strconv.Atoi(os.Getenv("GRACE_CONTROL"))
	if err != nil {
		return 0, errors.New("GRACE_CONTROL names no descriptor")
	}
	return control(fd), syscall.SetNonblock(fd, false)
}

// write writes all of it, the descriptors with the first byte: a signal, of which Go's
// runtime sends some, may cut a system call short.
func (c control) write(b []byte, fds ...int) {
	var rights []byte
	if len(fds) > 0 {
		rights = syscall.UnixRights(fds...)
	}
	for len(b) > 0 {
		n, err := syscall.SendmsgN(int(c), b, rights, nil, 0)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			kit.Event("unsent", "error", err)
			return
		}
		b, rights = b[n:], nil
	}
}

func (c control) send(kind int, body string, fds ...int) {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	b = binary.BigEndian.AppendUint16(b, uint16(kind))
	b = binary.BigEndian.AppendUint16(b, uint16(len(fds)))
	c.write(append(b, body...), fds...)
}

// trickle sends a message that never ends, byte by byte.
func (c control) trickle() {
	c.write([]byte{0, 0, 0xff, 0xff, 0, ready, 0, 0})
	for {
		c.write([]byte{' '})
		time.Sleep(50 * time.Millisecond)
	}
}

// flood sends messages that mean nothing, as fast as it can.
func (c control) flood() {
	for {
		c.send(1000, strings.Repeat(" ", 1<<16))
	}
}

func (c control) close() { syscall.Close(int(c)) }

// receiveConns skips messages until one brings connections, and the socket for the answer.
func (c control) receiveConns() (answer control, fds []int, err error) {
	for {
		fds = nil
		read := func(b []byte) error {
			for len(b) > 0 {
				oob := make([]byte, syscall.CmsgSpace(4*253))
				n, oobn, _, _, err := syscall.Recvmsg(int(c), b, oob, 0)
				if err == syscall.EINTR {
					continue
				}
				if err != nil {
					return err
				}
				if n == 0 {
					return io.ErrUnexpectedEOF
				}
				messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
				if err != nil {
					return err
				}
				for i := range messages {
					more, err := syscall.ParseUnixRights(&messages[i])
					if err != nil {
						return err
					}
					fds = append(fds, more...)
				}
				b = b[n:]
			}
			return nil
		}
		var header [8]byte
		if err := read(header[:]); err != nil {
			return 0, nil, err
		}
		body := make([]byte, binary.BigEndian.Uint32(header[:]))
		if err := read(body); err != nil {
			return 0, nil, err
		}
		if binary.BigEndian.Uint16(header[4:]) != conns {
			continue
		}
		if len(fds) == 0 {
			return 0, nil, errors.New("connections without descriptors")
		}
		return control(fds[0]), fds[1:], nil
	}
}

// parent starts the test server with variables that were meant for somebody
// else, as a subreaper or a shell under socket activation does, and says whether
// it gets a signal from it.
func parent(program string) error {
	signals := make(chan os.Signal, 10)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR2, syscall.SIGINT, syscall.SIGHUP)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	cmd := exec.Command(program, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{file}
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1")
	if err := cmd.Start(); err != nil {
		return err
	}
	kit.Event("started", "child", cmd.Process.Pid)
	for sig := range signals {
		kit.Event("got", "signal", sig)
	}
	return nil
}
