// Command gracebench shows what a restart costs the clients of a server built on gracehttp.
//
// It starts itself as the server under test, loads it with clients that never retry, and restarts it again and again
// with real signals, while counting what the clients notice:
//
//	go run ./gracebench                         a table of all kinds of clients, in less than two minutes
//	go run ./gracebench -full                   the same with 100 restarts of each kind, in about twelve
//	go run ./gracebench -short                  a few restarts of each kind, in less than a minute
//	go run ./gracebench -kinds http1,tls1       some kinds only
//	go run ./gracebench -peers                  a comparison with other ways to restart
//	go run ./gracebench -svg restart.svg        a picture of one restart, and one by net/http's recipe
//	go run ./gracebench -soak 1000              memory, descriptors, goroutines and processes over 1,000 restarts
//	go run ./gracebench -chaos 10m              good and bad versions, kills, stops: is each loss explained?
//	go run ./gracebench -fleet                  instances behind load balancers, restarted and replaced in turn
//	go run ./gracebench -cost                   what the library costs while nothing restarts, next to net/http
//	go run ./gracebench -peer './other {addr}'  the same table for another server
//
// # Reading the table
//
// A row is a kind of client; 32 of them run at a time. A quarter sends one request after another, the others pause
// between requests: up to 5 ms, 50 ms or 400 ms. One request in eight makes the handler wait for up to 5 ms, and one in
// eight is written in two parts. Every request is a POST with a body of its own, which the server has to send back.
// The clients of chat send lines over connections that never end, three at once where others make the handler wait; the
// server moves these connections itself, and numbers its answers, so that each line is known to be answered once and in
// order.
//
//   - requests: all that were sent.
//   - restarts: processes that took over, known by the pid in their answers.
//   - lost: requests that got no answer, an error, or the wrong answer. The lines below the row say which.
//   - new conns: connections opened after each client's first, for each restart, by all clients together. A client opens
//     one when an answer says "Connection: close" or when its connection is closed while it pauses; that alone loses
//     nothing. Behind a proxy, the proxy's new connections to the server are counted (by the addresses that the server
//     sees), not the clients'.
//   - resumed: the share of new TLS connections that continued an earlier session.
//   - p99: of the time from the last byte of a request to the end of its answer, with the time for connecting if there
//     was no connection, for the requests before the first signal. Those for which the handler waits are left out.
//   - ratio: for each restart, the 99th percentile of the requests that ended in the 200 ms after its signal, as a
//     multiple of that in the 200 ms before it; the median of these, and the interval that holds the true one with 95 %
//     confidence. Restarts that follow too soon on another, or see fewer than 100 requests, do not count; with fewer than
//     six there is none. A new process needs a processor for some milliseconds to start: where the clients leave none
//     idle, that is what the ratio shows.
//   - first answer: from the signal to the first answer by the new process, the median.
//   - old gone: from the signal to the end of the old process, the median.
//
// With -json there is more: p50, p99 and the maximum of the times of requests before the first signal, during restarts
// (under way at some time in the 200 ms after a signal), while the old process drains (later, but it was still there),
// and after; the same of first answer and old gone; and of the time from the old process's last answer to its end.
//
// A row fails, and the exit status is 1, when a request was lost, when there were more new connections than the row
// allows, when a restart did not happen, or when a process ended with an error. A kind that needs a program which is
// not installed is skipped, and the output says so.
//
// # Reading the cost
//
// With -cost, two servers take turns under the same load, in slices of 20 ms: one on gracehttp, one on net/http alone.
// A ratio is ours to theirs, the median of 60 such pairs of processes (7 with -short): two that are the same differ by
// 5 % easily, for all of their lives. A machine that others use as well widens the interval behind it, and a longer
// look at a ratio needs no more than another run. Allocations, and the bytes in use for an idle connection (heap and
// stacks after a collection), hardly depend on what else happens.
//
// The floor is what no library can do better here: the time in which the same program, started bare, gives its first
// answer; and what the comparison says of two servers on net/http alone.
//
// Then servers are restarted that hold many idle connections, or many listeners, and nothing else to do: the times from
// the signal should grow no faster than the numbers. Every connection is used again after each restart, the last time
// after more than the server's ReadHeaderTimeout. The servers with connections then restart as often again while four
// clients make requests on any of them: how long the answers take should not grow with the number. The kinds of -kinds
// are load, floor, memory, idle and listeners here.
//
// # Reading soak and chaos
//
// With -soak a server restarts as often as that, while 64 connections are used during and after each restart. Looked at
// are the generations after 1 %, 10 %, 50 % and all of the restarts. A descriptor or a process more is growth, and so is
// memory beyond what a collection at another moment explains: then the exit status is 1.
//
// With -chaos each restart is to a version that serves, starts slowly, exits, panics, hangs, or is no program; and at a
// random moment the old or the new process is killed, stopped (SIGTERM) or frozen. Before a process is killed it is
// frozen, and the connections that it holds are written down. A lost request is explained if its connection is one of
// those, or if no process was left to serve; any other fails the run. The service also has to serve on whenever nobody
// ended it, and has to take each good version. The same -seed has the same things happen at the same moments, as far as
// the machine lets them.
//
// # Reading the fleet
//
// With -fleet eight instances (two with -short) are behind haproxy and nginx, configured as in gracedemo/deploy/fleet but
// that haproxy may not try again, and behind a balancer of connections (layer 4): like kube-proxy it knows nothing of HTTP
// and gives an instance new connections until a second after that was not ready, and it delays all bytes by 10 ms in each
// direction. Each of them has clients of the kinds named, a quarter of -clients of each kind. One after the other the
// instances restart, three times each; then each is stopped and, a second after its end, replaced. The next one's turn
// comes when the new process has answered behind each balancer.
//
// The run fails when a request is lost. The last columns are the control: the same stops without the lame duck, in which
// haproxy and the balancer of connections have to lose some, or the run fails too. nginx does without, since it takes
// another instance by itself when a connection is refused.
//
// # Comparing with other servers
//
// With -peers the same clients meet servers that restart in other ways: net/http's own recipe (Shutdown, then start
// anew), tableflip, endless and the original facebookgo/grace, whose programs in gracebench/peers are built first; and
// nginx and haproxy that reload, in front of a server that does not restart. One that cannot be had is skipped.
//
// The command given with -peer is started once for each row. In its words {addr} is replaced by the address to listen
// on, {proto} by http, tls or h2c, and {cert} and {key} by the names of PEM files. It has to answer a POST with the
// body it got, after waiting for as long as the query says ("?3000us"). A header "Pid" in its answers lets gracebench
// follow it to its new process; without it the signal (-signal, by default USR2) always goes to the process that was
// started, and a restart counts as done when the signal is sent.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

type config struct {
	clients  int
	restarts int           // of each kind
	rapid    int           // restarts of the kind rapid
	budget   time.Duration // for the restarts of one kind; 0 is as long as they take
	interval time.Duration // from the end of a restart to the next signal
	steady   time.Duration // load before the first signal and after the last restart
	short    bool
	json     bool
	verbose  bool
	peer     string
	signal   os.Signal
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "-serve" {
		if err := serveMain(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "gracebench: server:", err)
			os.Exit(1)
		}
		return
	}
	if err := benchMain(); err != nil {
		fmt.Fprintln(os.Stderr, "gracebench:", err)
		os.Exit(1)
	}
}

func benchMain() error {
	var (
		cfg               config
		kindList          string
		signalName        string
		svg               string
		soak              int
		chaosFor          time.Duration
		seed              uint64
		cost, full, peers bool
		fleet             bool
	)
	flag.IntVar(&cfg.clients, "clients", 32, "clients at a time")
	flag.IntVar(&cfg.restarts, "restarts", 0, "restarts of each kind, half as many of the kind rapid (default as many as fit into two minutes)")
	flag.DurationVar(&cfg.interval, "interval", 400*time.Millisecond, "time from the end of one restart to the next signal")
	flag.StringVar(&kindList, "kinds", "", "kinds to run, with commas between them: "+strings.Join(kindNames(), ", ")+"; with -cost: "+strings.Join(costParts, ", ")+" (default all)")
	flag.BoolVar(&full, "full", false, "100 restarts of each kind, in about twelve minutes")
	flag.BoolVar(&cfg.short, "short", false, "a few restarts of each kind, in less than a minute")
	flag.BoolVar(&cfg.json, "json", false, "write JSON instead of tables")
	flag.BoolVar(&cfg.verbose, "v", false, "show the log of the server")
	flag.BoolVar(&cost, "cost", false, "measure what the library costs while nothing restarts, next to net/http; and how restarts grow with connections and listeners")
	flag.BoolVar(&peers, "peers", false, "compare with other ways to restart")
	flag.BoolVar(&fleet, "fleet", false, "restart and replace instances behind load balancers")
	flag.StringVar(&svg, "svg", "", "draw one restart, request by request, into this `file`")
	flag.IntVar(&soak, "soak", 0, "restart this often, and look whether the server grows")
	flag.DurationVar(&chaosFor, "chaos", 0, "restart to good and bad versions for this long, and kill, stop and freeze either side")
	flag.Uint64Var(&seed, "seed", 0, "of -chaos: what happens, and when (default one of its own each time)")
	flag.StringVar(&cfg.peer, "peer", "", "`command` of another server to run the table against; {addr} in it is where it is to listen")
	flag.StringVar(&signalName, "signal", "USR2", "signal that makes the -peer restart")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: gracebench [flags]\n"+
			"Restarts a server under load, and exits with status 1 if a request was lost. More: go doc ./gracebench\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if cfg.clients < 1 || cfg.restarts < 0 {
		return errors.New("-clients must be at least 1, and -restarts not negative")
	}
	sig, err := signalByName(signalName)
	if err != nil {
		return err
	}
	cfg.signal = sig

	cfg.steady = time.Second
	switch {
	case cfg.restarts > 0:
		cfg.rapid = (cfg.restarts + 1) / 2
	case cfg.short:
		cfg.restarts, cfg.rapid = 5, 10
	case full:
		cfg.restarts, cfg.rapid = 100, 50
	default:
		cfg.restarts, cfg.rapid, cfg.budget, cfg.steady = 100, 50, 7*time.Second, 750*time.Millisecond
	}
	if cfg.short {
		cfg.steady = 300 * time.Millisecond
		cfg.interval = 50 * time.Millisecond
	}

	// Whatever ends the run ends it in order, so that no process and no directory stays behind.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// A closed standard output becomes an error of writing to it.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	switch {
	case cost:
		return benchCost(ctx, cfg, kindList)
	case fleet:
		return benchFleet(ctx, cfg)
	case peers:
		return benchPeers(ctx, cfg)
	case svg != "":
		return benchTimeline(ctx, cfg, svg)
	case soak > 0:
		return benchSoak(ctx, cfg, soak)
	case chaosFor > 0:
		return benchChaos(ctx, cfg, chaosFor, seed)
	}
	kinds, err := chooseKinds(kindList, cfg.peer != "")
	if err != nil {
		return err
	}
	return benchTable(ctx, cfg, kinds)
}

// benchTable runs the kinds one after the other, and prints each row as soon as it is known.
func benchTable(ctx context.Context, cfg config, kinds []kind) error {
	if !cfg.json {
		if _, err := fmt.Print(tableHead(cfg)); err != nil {
			return err
		}
	}
	line := newProgress(cfg)
	defer line.close()
	var rows []*row
	var failed []string
	for i, k := range kinds {
		r, err := runKind(ctx, cfg, k, func(t *target) {
			left := time.Duration(0)
			for _, k := range kinds[i:] {
				left += k.takes(cfg)
			}
			line.follow(k.name, left, t.soFar)
		})
		line.pause()
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		if len(r.Failures) > 0 {
			failed = append(failed, k.name)
		}
		rows = append(rows, r)
		if !cfg.json {
			if _, err := fmt.Print(r.text()); err != nil {
				return err
			}
		}
	}
	if cfg.json {
		if err := writeJSON(rows); err != nil {
			return err
		}
	} else if _, err := fmt.Printf("\n%s\n", verdict(rows)); err != nil {
		return err
	}
	if len(failed) > 0 {
		return fmt.Errorf("failed: %s", strings.Join(failed, ", "))
	}
	return nil
}

func writeJSON(v any) error {
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	return out.Encode(v)
}
