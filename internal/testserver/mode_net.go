//go:build unix

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/gracenet"
	"github.com/facebookgo/grace/internal/testserver/kit"
)

// netSockets has its sockets from gracenet, of every kind, and a signal loop of
// its own. An address is written NETWORK=ADDRESS, or file=NAME=PATH for a file:
// each generation writes its process id to it. What a configuration would change is
// written NETWORK=in:PATH: the address is in that file.
//
// It plays these faults: "skip-NETWORK", it does not ask for sockets of this
// network; "give-up", it closes all that it has opened, and exits; and
// "close-NETWORK", it closes sockets of this network before it restarts.
func netSockets(f *kit.Flags) error {
	var n gracenet.Net
	var addrs []net.Addr
	opened := map[string][]io.Closer{}
	for _, entry := range f.Listen {
		network, address, _ := strings.Cut(entry, "=")
		if path, ok := strings.CutPrefix(address, "in:"); ok {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			address = string(b)
		}
		if f.Faulty("skip-" + network) {
			addrs = append(addrs, nowhere{})
			continue
		}
		c, addr, err := openNet(&n, network, address)
		if err != nil {
			return err
		}
		addrs = append(addrs, addr)
		opened[network] = append(opened[network], c)
	}
	closeAll := func(network string) {
		for _, c := range opened[network] {
			if err := c.Close(); err != nil {
				kit.Event("close", "error", err)
			}
		}
		delete(opened, network)
	}
	if f.Faulty("give-up") {
		for network := range opened {
			closeAll(network)
		}
		return errors.New("given up")
	}

	signals := make(chan os.Signal, 10)
	signal.Notify(signals, syscall.SIGUSR2)
	if !f.Faulty("no-handler") {
		signal.Notify(signals, syscall.SIGTERM)
	}
	if err := grace.CloseParent(); err != nil {
		return err
	}
	kit.Ready(addrs...)
	f.AfterReady()
	for sig := range signals {
		if sig == syscall.SIGTERM {
			break
		}
		for network := range opened {
			if f.Faulty("close-" + network) {
				closeAll(network)
			}
		}
		pid, err := n.StartProcess()
		if err != nil {
			kit.Event("failed-restart", "error", err)
			continue
		}
		kit.Event("started", "child", pid)
	}
	for network := range opened {
		closeAll(network)
	}
	return nil
}

func openNet(n *gracenet.Net, network, address string) (io.Closer, net.Addr, error) {
	switch network {
	case "file":
		name, path, _ := strings.Cut(address, "=")
		f, err := openFile(n, name, path)
		return f, nowhere{}, err
	case "udp", "udp4", "udp6", "unixgram":
		c, err := n.ListenPacket(network, address)
		if err != nil {
			return nil, nil, err
		}
		go answerDatagrams(c)
		return c, c.LocalAddr(), nil
	default:
		l, err := n.Listen(network, address)
		if err != nil {
			return nil, nil, err
		}
		serve([]grace.Listener{l.(grace.Listener)})
		return l, l.Addr(), nil
	}
}

// openFile asks for a file, from many goroutines, and opens it if there is none.
func openFile(n *gracenet.Net, name, path string) (*os.File, error) {
	const times = 8
	files := make([]*os.File, times)
	errs := make([]error, times)
	var asking sync.WaitGroup
	for i := range files {
		asking.Add(1)
		go func() {
			defer asking.Done()
			files[i], errs[i] = n.File(name)
		}()
	}
	asking.Wait()
	found := 0
	for i, f := range files {
		if errs[i] == nil {
			found++
			defer f.Close()
		} else if !errors.Is(errs[i], fs.ErrNotExist) {
			return nil, errs[i]
		}
	}
	kit.Event("file", "name", name, "found", found, "of", times)
	if found == 0 {
		f, err := os.Create(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if err := n.AddFile(name, f); err != nil {
			return nil, err
		}
	}
	f, err := n.File(name)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintln(f, os.Getpid())
	return f, err
}

// answerDatagrams answers each datagram with the process id.
func answerDatagrams(c net.PacketConn) {
	b := make([]byte, 1<<16)
	for {
		_, from, err := c.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, err = c.WriteTo([]byte(fmt.Sprint(os.Getpid())), from)
		}
		if err != nil {
			kit.Event("datagram", "error", err)
		}
	}
}

// nowhere is the address of what has none.
type nowhere struct{}

func (nowhere) Network() string { return "" }
func (nowhere) String() string  { return "-" }
