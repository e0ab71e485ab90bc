package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// A costReport tells what the library costs next to net/http alone, and how restarts grow.
type costReport struct {
	KeepAlive      comparison `json:",omitzero"`
	NewConnections comparison `json:",omitzero"`

	Floor floor `json:",omitzero"`

	IdleConnections int      `json:",omitzero"`
	IdlePlain       float64  `json:",omitzero"` // bytes for each idle connection
	IdleGrace       float64  `json:",omitzero"`
	IdleRatio       estimate `json:",omitzero"`

	Moves     []growth `json:",omitempty"` // of idle connections
	Listeners []growth `json:",omitempty"`
	// What one more adds to the time from the signal to the old process's end.
	EachMove     millis `json:",omitempty"`
	EachListener millis `json:",omitempty"`

	Failures []string `json:",omitempty"`
}

// A comparison is of our server with net/http alone under the same load. Ratios are ours to theirs.
type comparison struct {
	Plain, Grace rate     // medians
	Throughput   estimate // of the ratio; below 1 is slower
	CPU          estimate // of the ratio of processor time for a request; above 1 is more
	Allocations  estimate // of the ratio, for a request
}

// A rate is what a server did under load.
type rate struct {
	PerSecond   float64
	CPU         float64 // microseconds of processor time for a request, or a connection with its request
	Allocations float64 // for a request
	Bytes       float64 // allocated for a request
}

// costPlan is how much is measured.
type costPlan struct {
	pairs   int           // of processes, one of each server
	rounds  int           // for each pair and load, each with a slice for either server
	slice   time.Duration // of load
	workers int           // connections that send at a time
	memory  int           // pairs of processes whose memory is compared
	starts  int           // of a server, to see how long one takes
	repeats int           // restarts of each size
	idle    []int
	listen  []int
}

func (cfg config) costPlan() costPlan {
	p := costPlan{
		pairs: 60, rounds: 20, slice: 20 * time.Millisecond, workers: 16,
		memory: 3, starts: 40, repeats: 5,
		idle: []int{1250, 2500, 5000, 10000}, listen: []int{125, 250, 500, 1000},
	}
	if cfg.short {
		p.pairs, p.rounds = 7, 15
		p.memory, p.starts, p.repeats = 1, 5, 2
		p.idle, p.listen = []int{500, 1000, 2000}, []int{50, 100, 200}
	}
	// A process may not have enough descriptors for as many; while connections move, one has all of them.
	if limit := fileLimit() - 500; limit > 0 && p.idle[len(p.idle)-1] > limit {
		p.idle = []int{limit / 8, limit / 4, limit / 2, limit}
	}
	return p
}

// costParts are what -cost measures, in this order; -kinds chooses among them.
var costParts = []string{"load", "floor", "memory", "idle", "listeners"}

func benchCost(ctx context.Context, cfg config, list string) error {
	parts := costParts
	if list != "" {
		parts = strings.Split(list, ",")
	}
	report := &costReport{}
	plan := cfg.costPlan()
	for _, part := range parts {
		var text string
		var err error
		switch part {
		case "load":
			text, err = report.compareServers(ctx, cfg, plan)
		case "floor":
			text, err = report.measureFloor(ctx, cfg, plan)
		case "memory":
			text, err = report.compareMemory(ctx, cfg, plan)
		case "idle":
			text, err = report.moveIdle(ctx, cfg, plan)
		case "listeners":
			text, err = report.moveListeners(ctx, cfg, plan)
		default:
			err = fmt.Errorf("unknown; there are %s", strings.Join(costParts, ", "))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
		if !cfg.json {
			if _, err := fmt.Println(text); err != nil {
				return err
			}
		}
	}
	if cfg.json {
		if err := writeJSON(report); err != nil {
			return err
		}
	}
	if len(report.Failures) > 0 {
		return errors.New(strings.Join(report.Failures, "; "))
	}
	return nil
}

func (c comparison) text(title, other string) string {
	line := func(what, format string, plain, grace float64, ratio estimate) string {
		return fmt.Sprintf("  %-20s net/http "+format+"   %s "+format+"   ratio %s\n", what, plain, other, grace, ratio)
	}
	return title + "\n" +
		line("per second", "%8.0f", c.Plain.PerSecond, c.Grace.PerSecond, c.Throughput) +
		line("processor time, µs", "%8.1f", c.Plain.CPU, c.Grace.CPU, c.CPU) +
		line("allocations", "%8.2f", c.Plain.Allocations, c.Grace.Allocations, c.Allocations)
}

func (e estimate) String() string { return fmt.Sprintf("%.4f (%.4f to %.4f)", e.Median, e.Low, e.High) }

func (r *costReport) compareServers(ctx context.Context, cfg config, plan costPlan) (string, error) {
	loads, err := compareLoad(ctx, cfg, plan, [2]bool{true, false})
	if err != nil {
		return "", err
	}
	r.KeepAlive, r.NewConnections = loads[0], loads[1]
	return fmt.Sprintf("Nothing restarts: medians of %d pairs of processes, each loaded in %d alternating slices of %v,\n"+
		"and of the pairs' ratios, with the interval that holds the true one with 95 %% confidence.\n\n",
		plan.pairs, plan.rounds, plan.slice) +
		r.KeepAlive.text("keep-alive, for each request", "gracehttp") + "\n" +
		r.NewConnections.text("new connections, for each with its request", "gracehttp"), nil
}

// compareLoad loads two servers in turn, in slices so short that whatever else happens on the machine happens to both;
// plain tells which are on net/http alone. Many pairs of processes, since one process may be lucky with its memory for
// all of its life: of two that are the same, one is 5 % faster easily.
func compareLoad(ctx context.Context, cfg config, plan costPlan, plain [2]bool) ([2]comparison, error) {
	var pairs [2][]comparison // by load: keep-alive, new connections
	for range plan.pairs {
		err := withPair(ctx, cfg, plain, func(pair [2]*target) error {
			for kind := range pairs {
				var slices []comparison
				var loads [2]*load
				for which, t := range pair {
					l, err := newLoad(t, plan.workers, kind == 1)
					if err != nil {
						return err
					}
					defer l.close()
					loads[which] = l
				}
				// The first slices warm both up.
				for round := -5; round < plan.rounds; round++ {
					var rates [2]rate // by server: plain, grace
					for turn := range loads {
						which := (turn + round + 5) % 2 // A B B A
						var err error
						if rates[which], err = loads[which].run(ctx, plan.slice); err != nil {
							return err
						}
					}
					if round >= 0 && rates[0].PerSecond > 0 && rates[1].PerSecond > 0 {
						slices = append(slices, compare(rates[0], rates[1]))
					}
				}
				pairs[kind] = append(pairs[kind], mediansOf(slices))
			}
			return nil
		})
		if err != nil {
			return [2]comparison{}, err
		}
	}
	return [2]comparison{mediansOf(pairs[0]), mediansOf(pairs[1])}, nil
}

// withPair starts two servers, on net/http alone or on the library, and stops them after use.
func withPair(ctx context.Context, cfg config, plain [2]bool, use func([2]*target) error) error {
	var pair [2]*target
	for i := range pair {
		t, err := startTarget(ctx, cfg, serverConfig{addr: "127.0.0.1:0", proto: "http", listeners: 1, plain: plain[i]})
		if err != nil {
			return err
		}
		defer t.stop(ctx)
		pair[i] = t
	}
	return use(pair)
}

// compare compares what both servers did in slices that followed on each other.
func compare(plain, grace rate) comparison {
	ratio := func(of func(rate) float64) estimate { return estimate{Median: of(grace) / of(plain)} }
	return comparison{
		Plain: plain, Grace: grace,
		Throughput: ratio(perSecond), CPU: ratio(cpu), Allocations: ratio(allocations),
	}
}

// mediansOf makes one comparison of many.
func mediansOf(all []comparison) comparison {
	of := func(value func(comparison) float64) estimate {
		var values []float64
		for _, c := range all {
			values = append(values, value(c))
		}
		return estimateOf(values)
	}
	server := func(which func(comparison) rate) rate {
		part := func(value func(rate) float64) float64 {
			return of(func(c comparison) float64 { return value(which(c)) }).Median
		}
		return rate{part(perSecond), part(cpu), part(allocations), part(allocated)}
	}
	return comparison{
		Plain:       server(func(c comparison) rate { return c.Plain }),
		Grace:       server(func(c comparison) rate { return c.Grace }),
		Throughput:  of(func(c comparison) float64 { return c.Throughput.Median }),
		CPU:         of(func(c comparison) float64 { return c.CPU.Median }),
		Allocations: of(func(c comparison) float64 { return c.Allocations.Median }),
	}
}

func perSecond(r rate) float64   { return r.PerSecond }
func cpu(r rate) float64         { return r.CPU }
func allocations(r rate) float64 { return r.Allocations }
func allocated(r rate) float64   { return r.Bytes }

// A load is what keeps one server busy.
type load struct {
	target *target
	conns  []net.Conn // one for each worker; nil where each request has a new one
}

func newLoad(t *target, workers int, fresh bool) (*load, error) {
	l := &load{target: t, conns: make([]net.Conn, workers)}
	for i := range l.conns {
		if fresh {
			continue
		}
		conn, err := net.Dial("tcp", t.addr)
		if err != nil {
			l.close()
			return nil, err
		}
		l.conns[i] = conn
	}
	return l, nil
}

func (l *load) close() { idleConns(l.conns).close() }

// run loads the server for one slice.
func (l *load) run(ctx context.Context, slice time.Duration) (rate, error) {
	g := l.target.order[0]
	before, err := l.target.usageOf(ctx, g, false)
	if err != nil {
		return rate{}, err
	}
	var wg sync.WaitGroup
	counts := make([]int, len(l.conns))
	errs := make([]error, len(l.conns))
	began := time.Now()
	end := began.Add(slice)
	for i, conn := range l.conns {
		wg.Add(1)
		go func() {
			defer wg.Done()
			counts[i], errs[i] = hammer(ctx, l.target.addr, conn, end)
		}()
	}
	wg.Wait()
	took := time.Since(began)
	after, err := l.target.usageOf(ctx, g, false)
	if err := errors.Join(append(errs, err, ctx.Err())...); err != nil {
		return rate{}, err
	}
	n := 0.0
	for _, c := range counts {
		n += float64(c)
	}
	return rate{
		PerSecond:   n / took.Seconds(),
		CPU:         (after.CPU - before.CPU).Seconds() * 1e6 / n,
		Allocations: float64(after.Mallocs-before.Mallocs) / n,
		Bytes:       float64(after.TotalAlloc-before.TotalAlloc) / n,
	}, nil
}

// hammer sends GETs until the end and counts the answers: on conn, or each on a new connection if it is nil.
func hammer(ctx context.Context, addr string, conn net.Conn, end time.Time) (n int, err error) {
	buf := make([]byte, 1024)
	for time.Now().Before(end) && ctx.Err() == nil {
		if conn != nil {
			_, err = get(conn, buf, false)
		} else {
			_, err = getOnce(addr, buf)
		}
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// getOnce sends a GET on a new connection.
func getOnce(addr string, buf []byte) (pid string, err error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return get(conn, buf, true)
}

var (
	getRequest = []byte("GET / HTTP/1.1\r\nHost: gracebench\r\n\r\n")
	// The server closes, so that the ports of the client are free at once.
	getLastRequest = []byte("GET / HTTP/1.1\r\nHost: gracebench\r\nConnection: close\r\n\r\n")
)

// get sends a GET and returns the pid in the answer. It does no more than it must, since what the client takes hides
// what the server takes.
func get(conn net.Conn, buf []byte, last bool) (pid string, err error) {
	conn.SetDeadline(time.Now().Add(answerTimeout))
	out := getRequest
	if last {
		out = getLastRequest
	}
	if _, err := conn.Write(out); err != nil {
		return "", err
	}
	for n := 0; n < len(buf); {
		m, err := conn.Read(buf[n:])
		n += m
		head, body, complete := bytes.Cut(buf[:n], []byte("\r\n\r\n"))
		if complete && len(body) >= len(hello) {
			if string(body) != hello || !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
				return "", errWrong
			}
			_, rest, _ := bytes.Cut(head, []byte("\r\nPid: "))
			value, _, _ := bytes.Cut(rest, []byte("\r\n"))
			return string(value), nil
		}
		if err != nil {
			return "", err
		}
	}
	return "", errWrong
}

// compareMemory opens idle connections to either server, and asks how much more they have in use.
func (r *costReport) compareMemory(ctx context.Context, cfg config, plan costPlan) (string, error) {
	r.IdleConnections = plan.idle[len(plan.idle)-1]
	var ratios, plain, grace []float64
	for range plan.memory {
		err := withPair(ctx, cfg, [2]bool{true, false}, func(pair [2]*target) error {
			var each [2]float64
			for i, t := range pair {
				before, err := t.usageOf(ctx, t.order[0], true)
				if err != nil {
					return err
				}
				conns, err := openIdle(ctx, t.addr, r.IdleConnections)
				defer conns.close()
				if err != nil {
					return err
				}
				after, err := t.usageOf(ctx, t.order[0], true)
				if err != nil {
					return err
				}
				conns.close()
				each[i] = (float64(after.InUse) - float64(before.InUse)) / float64(r.IdleConnections)
			}
			plain, grace = append(plain, each[0]), append(grace, each[1])
			ratios = append(ratios, each[1]/each[0])
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	r.IdlePlain, r.IdleGrace = estimateOf(plain).Median, estimateOf(grace).Median
	r.IdleRatio = estimateOf(ratios)
	return fmt.Sprintf("%d idle connections, heap and stacks in use for each\n", r.IdleConnections) +
		fmt.Sprintf("  %-24s net/http %8.0f   gracehttp %8.0f   ratio %s\n", "bytes", r.IdlePlain, r.IdleGrace, r.IdleRatio), nil
}
