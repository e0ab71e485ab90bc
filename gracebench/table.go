package main

import (
	"cmp"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
)

const rowFormat = "%-10s %9v %8v %6v %9v %11v %8v  %-20s %-20s %-20s %-20s %-17s  %-12s %-12s %s\n"

func tableHead(cfg config) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d clients that never retry, %d restarts (rapid: %d); %s/%s, %d processors. Times in ms.\n"+
		"What the columns mean: go doc ./gracebench\n\n",
		cfg.clients, cfg.restarts, cfg.rapid, runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	fmt.Fprintf(&b, rowFormat, "", "", "", "", "new", "new conns", "", "answers p50/p99/max", "", "", "", "p99 ratio",
		"first answer", "old gone", "after its")
	fmt.Fprintf(&b, rowFormat, "kind", "requests", "restarts", "lost", "conns", "per restart", "resumed", "before", "during", "drain", "after",
		"(95 %)", "p50/max", "p50/max", "last answer")
	return b.String()
}

func (r *row) text() string {
	if r.Skipped != "" {
		return fmt.Sprintf("%-10s skipped: %s\n", r.Kind, r.Skipped)
	}
	var b strings.Builder
	newConns, perRestart := fmt.Sprint(r.NewConns), fmt.Sprintf("%.1f", float64(r.NewConns)/float64(max(r.Restarts, 1)))
	if r.Limit < 0 {
		newConns, perRestart = "-", "-"
	}
	fmt.Fprintf(&b, rowFormat, r.Kind, r.Requests, r.Restarts, r.Lost, newConns, perRestart, cmp.Or(r.Resumed, "-"),
		r.Before.three(), r.During.three(), r.Drain.three(), r.After.three(), r.ratio(),
		r.FirstAnswer.two(), r.Gone.two(), r.AfterLast.two())
	for _, what := range slices.SortedFunc(maps.Keys(r.LostBy), func(x, y string) int {
		return cmp.Or(cmp.Compare(r.LostBy[y], r.LostBy[x]), cmp.Compare(x, y))
	}) {
		fmt.Fprintf(&b, "%*d lost: %s\n", 36, r.LostBy[what], what)
	}
	for _, failure := range r.Failures {
		fmt.Fprintf(&b, "  FAILED: %s\n", failure)
	}
	if r.Log != "" {
		fmt.Fprintf(&b, "  the end of the server's log:\n    %s\n", strings.ReplaceAll(r.Log, "\n", "\n    "))
	}
	return b.String()
}

func (s summary) three() string {
	if s.Max == 0 {
		return "-"
	}
	return fmt.Sprintf("%v/%v/%v", s.P50, s.P99, s.Max)
}

func (s summary) two() string {
	if s.Max == 0 {
		return "-"
	}
	return fmt.Sprintf("%v/%v", s.P50, s.Max)
}

func (r *row) ratio() string {
	if r.Ratio.Median == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f (%.2f-%.2f)", r.Ratio.Median, r.Ratio.Low, r.Ratio.High)
}
