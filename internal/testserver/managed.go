//go:build unix

package main

import (
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/facebookgo/grace/gracehttp"
	"github.com/facebookgo/grace/gracenet"
	"github.com/facebookgo/grace/internal/testserver/kit"
)

// What the mode http has for process managers.
var (
	pidFile = flag.String("pidfile", "", "File for the process id.")
	standby = flag.Duration("standby", 0, "How long to stay after a handoff.")
	store   = flag.Bool("store", false, "Store the listeners with the manager.")
	moves   = flag.Bool("move", false, "Move the connections of /move.")
	packets kit.List

	toMove  = make(chan struct{}) // closed when it is time
	noHooks = flag.Bool("no-hooks", false, "Have no hook that is told of a drain.")
	wrap    = flag.String("wrap", "", "Wrapper around each listener: proxy, limit, or tls instead of TLS by the library.")
)

func init() {
	flag.Var(&packets, "packet", "Datagram address, HOST:PORT, unixgram:PATH or systemd:NAME; may be repeated.")
}

// managedOptions returns what the flags ask for, and answers datagrams. The
// returned function waits for the last of them.
func managedOptions(f *kit.Flags) (options []gracehttp.Option, finish func(), err error) {
	options = append(options, gracehttp.OnRestart(func(pid int, took time.Duration, err error) {
		kit.Event("outcome", "successor", pid, "took", took, "error", err)
		f.Hook("onrestart")
	}))
	if *moves {
		options = append(options,
			gracehttp.OnDrain(sync.OnceFunc(func() { close(toMove) })),
			gracehttp.OnMove(func(c net.Conn, _ []byte) {
				f.Hook("onmove")
				kit.Echo(c)
			}))
	}
	if *pidFile != "" {
		options = append(options, gracehttp.PIDFile(*pidFile))
	}
	if *lameDuck > 0 {
		options = append(options, gracehttp.LameDuck(*lameDuck))
	}
	if *standby > 0 {
		options = append(options, gracehttp.Standby(*standby))
	}
	if *store {
		options = append(options, gracehttp.StoreListeners())
	}

	var n gracenet.Net
	var loops sync.WaitGroup
	for _, address := range packets {
		network := "udp"
		if path, ok := strings.CutPrefix(address, "unixgram:"); ok {
			network, address = "unixgram", path
		}
		c, err := n.ListenPacket(network, address)
		if err != nil {
			return nil, nil, err
		}
		// Datagrams that come from now on are the successor's.
		options = append(options, gracehttp.OnDrain(func() { c.SetReadDeadline(time.Unix(1, 0)) }))
		loops.Add(1)
		go func() {
			defer loops.Done()
			answer(c)
		}()
	}
	return options, loops.Wait, nil
}

// answer sends each datagram back, after the process id, until its read deadline.
func answer(c net.PacketConn) {
	b := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		if from != nil {
			c.WriteTo(fmt.Appendf(nil, "%d %s", os.Getpid(), b[:n]), from)
		}
	}
}
