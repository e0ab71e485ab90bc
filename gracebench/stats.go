package main

import (
	"math"
	"slices"
	"time"
)

// during is how long after a restart's signal a request counts as one during the restart.
const during = 200 * time.Millisecond

// phases are response times, by when the requests were under way.
type phases struct {
	before, during, drain, after []time.Duration
}

// add records a request that began and ended at these times, given those of the last restart's signal and of the last
// end of an old process that was waited for (0 before the first). Only the last signal matters: a request that was under
// way after an earlier one and still is after this one was so during both restarts.
func (p *phases) add(began, ended, signal, gone time.Duration) {
	took := ended - began
	switch {
	case signal == 0 || ended < signal:
		p.before = append(p.before, took)
	case began <= signal+during:
		p.during = append(p.during, took)
	case gone < signal || began <= gone:
		p.drain = append(p.drain, took)
	default:
		p.after = append(p.after, took)
	}
}

func (p *phases) merge(q phases) {
	p.before = append(p.before, q.before...)
	p.during = append(p.during, q.during...)
	p.drain = append(p.drain, q.drain...)
	p.after = append(p.after, q.after...)
}

// enough is how many requests a percentile is taken of, at least, to be compared.
const enough = 1000

// ratio is the 99th percentile of the requests during restarts, or of those during the drains that came after, whichever
// is worse, as a multiple of that of all requests before and after.
func (p *phases) ratio() float64 {
	steady := summarize(slices.Concat(p.before, p.after)).P99
	if steady == 0 {
		return 0
	}
	worse := summarize(p.during).P99
	if len(p.drain) >= enough {
		worse = max(worse, summarize(p.drain).P99)
	}
	return float64(worse / steady)
}

// summary is what is shown of many durations.
type summary struct {
	P50, P99, Max millis
}

// millis is a duration that is shown, and written as JSON, in milliseconds.
type millis float64

func summarize(all []time.Duration) summary {
	slices.Sort(all)
	return summary{
		P50: inMillis(percentile(all, 50)),
		P99: inMillis(percentile(all, 99)),
		Max: inMillis(percentile(all, 100)),
	}
}

func inMillis(d time.Duration) millis {
	return millis(math.Round(d.Seconds()*1e6) / 1e3)
}

// percentile returns the smallest of the sorted durations that at least p percent of them do not exceed.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// An estimate is the median of measurements, and the interval that holds the true median with 95 % confidence.
type estimate struct {
	Median, Low, High float64
}

// estimateOf assumes nothing about how the measurements are distributed: the ends of the interval are order statistics,
// by the binomial distribution of how many measurements lie below the median.
func estimateOf(values []float64) estimate {
	n := len(values)
	if n == 0 {
		return estimate{}
	}
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	e := estimate{Median: (sorted[(n-1)/2] + sorted[n/2]) / 2, Low: sorted[0], High: sorted[n-1]}
	below := 0.0 // probability that at most k measurements lie below the median
	for k := range n / 2 {
		below += math.Exp(logChoose(n, k) - float64(n)*math.Ln2)
		if below > 0.025 {
			break
		}
		e.Low, e.High = sorted[k], sorted[n-1-k]
	}
	return e
}

// logChoose returns the logarithm of the number of ways to choose k of n.
func logChoose(n, k int) float64 {
	lgamma := func(i int) float64 {
		v, _ := math.Lgamma(float64(i))
		return v
	}
	return lgamma(n+1) - lgamma(k+1) - lgamma(n-k+1)
}
