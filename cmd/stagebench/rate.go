package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// rate is a flag with a rate in requests per second. It is written as a number, or with a unit of time: 100/s, 6000/m.
type rate float64

// Type is shown in the help.
func (*rate) Type() string { return "rate" }

// String returns the rate in requests per second.
func (r *rate) String() string { return strconv.FormatFloat(float64(*r), 'g', -1, 64) }

// Set parses a rate. Its range is checked where it is used.
func (r *rate) Set(text string) error {
	number, unit, found := strings.Cut(text, "/")
	if !found {
		unit = "s"
	}
	per, known := map[string]time.Duration{
		"s": time.Second, "1s": time.Second, "m": time.Minute, "1m": time.Minute, "h": time.Hour, "1h": time.Hour,
	}[unit]
	requests, err := strconv.ParseFloat(number, 64)
	if err != nil || !known {
		return fmt.Errorf("want requests per second such as 500, or 100/s, 6000/m")
	}
	*r = rate(requests / per.Seconds())
	return nil
}
