package edgetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	// timeout bounds every wait for an event. A test that passes stays far below it.
	timeout = 30 * time.Second
	// lifetime is a wait after which a lifetime of one second is over in every engine. Some count in whole seconds.
	lifetime = 2200 * time.Millisecond
)

// client is what users of an edge are: it never repeats a request, follows no redirect and stores nothing.
type client struct {
	base string // URL of the edge, without a trailing slash
	http *http.Client
}

func newClient(base string) client {
	return client{base: base, http: &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       timeout,
	}}
}

// response is a response with its body.
type response struct {
	status int
	header http.Header
	body   string
}

// do sends a request. Fields have the form of Step.Send. The field Host sets the authority of the request.
func (c client) do(ctx context.Context, method, path string, fields []string, body string) (response, error) {
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, cmp.Or(method, http.MethodGet), c.base+path, content)
	if err != nil {
		return response{}, err
	}
	for _, line := range fields {
		name, value := field(line)
		if name == "Host" {
			r.Host = value
			continue
		}
		r.Header.Add(name, value)
	}
	res, err := c.http.Do(r)
	if err != nil {
		return response{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return response{status: res.StatusCode, header: res.Header, body: string(text)}, err
}

// get requests a path.
func (c client) get(ctx context.Context, path string, fields ...string) (response, error) {
	return c.do(ctx, "", path, fields, "")
}

var bodyNumber = regexp.MustCompile(`#(\d+)$`)

// number returns which response of the origin this is, from 1; 0 = unknown.
func (r response) number() int {
	if match := bodyNumber.FindStringSubmatch(r.body); match != nil {
		n, _ := strconv.Atoi(match[1]) // the pattern has digits only
		return n
	}
	n, _ := strconv.Atoi(r.header.Get(numberField)) // absent or not a number = unknown
	return n
}

// exchange plays a case and returns its first failure.
func exchange(ctx context.Context, c client, o *origin, test Case, slots chan struct{}) error {
	s := o.newScript(test.ID)
	// Cases at the same time are bounded, and cases that wait do not count. A case keeps its slot from one step to the
	// next: otherwise a response with a short life could become stale in the queue.
	slots <- struct{}{}
	defer func() { <-slots }()
	for i, step := range test.Steps {
		if step.Wait > 0 {
			<-slots
			going := pause(ctx, time.Duration(step.Wait)*lifetime)
			slots <- struct{}{}
			if !going {
				return ctx.Err()
			}
		}
		if err := play(ctx, c, s, test, step); err != nil {
			return fmt.Errorf("request %d: %w", i+1, err)
		}
	}
	return nil
}

// pause waits for a time. It returns false if ctx ends before.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// play plays one step.
func play(ctx context.Context, c client, s *script, test Case, step Step) error {
	s.play(step.Answer, step.Want == Validated)
	before, _ := s.reached()
	var fields []string
	for _, line := range step.Send {
		name, value := field(line)
		fields = append(fields, name+": "+s.expand(value))
	}
	path := test.Prefix + "/case/" + s.name + step.At
	res, failure := c.do(ctx, step.Method, path, fields, step.Body)
	if step.Settle && !s.await(ctx, len(before)+1) {
		return errors.New("no request reached the origin, not even later")
	}
	requests, _ := s.reached()
	after := requests[len(before):]
	if err := step.Want.check(res, failure, len(before), after); err != nil {
		return err
	}
	if failure != nil {
		return nil // as wanted
	}
	if step.Status != 0 && res.status != step.Status {
		return fmt.Errorf("status %d, want %d", res.status, step.Status)
	}
	if step.Text != "" && res.body != step.Text {
		return fmt.Errorf("body %q, want %q", res.body, step.Text)
	}
	if err := s.match(step.Fields, res.header, res.header.Get("Host")); err != nil {
		return fmt.Errorf("the response: %w", err)
	}
	if len(step.Forwarded) == 0 {
		return nil
	}
	if len(after) == 0 {
		return errors.New("no request reached the origin")
	}
	last := after[len(after)-1]
	if err := s.match(step.Forwarded, last.header, last.host); err != nil {
		return fmt.Errorf("the request at the origin: %w", err)
	}
	return nil
}

// await waits until a number of requests have reached the origin.
func (s *script) await(ctx context.Context, n int) bool {
	for {
		requests, changed := s.reached()
		if len(requests) >= n {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		case <-time.After(lifetime):
			return false
		}
	}
}

// check compares the response of a client with what it must be. before is the number of requests that reached the
// origin in earlier steps, after are those of this step.
func (w Want) check(res response, failure error, before int, after []arrival) error {
	if w == Failed {
		if failure == nil && (res.status < 500 || res.number() != 0) {
			return fmt.Errorf("got status %d and response %d of the origin, want %v", res.status, res.number(), w)
		}
		return nil
	}
	if failure != nil {
		return failure
	}
	old := res.number() <= before
	got := fmt.Sprintf("got status %d, response %d of the origin after %d requests, %d in this step",
		res.status, res.number(), before, len(after))
	var good bool
	switch w {
	case Hit:
		good = old && len(after) == 0
	case Miss:
		good = len(after) == 1 && (res.number() == before+1 || res.number() == 0)
	case Validated:
		good = len(after) == 1 && after[0].notModified && old
	case Stale:
		good = old && before > 0 && res.status < 500
	default:
		good = true
	}
	if !good {
		return fmt.Errorf("%s, want %v", got, w)
	}
	return nil
}

// match compares fields with patterns in the form of Step.Fields.
func (s *script) match(patterns []string, header http.Header, host string) error {
	for _, pattern := range patterns {
		if name, absent := strings.CutPrefix(pattern, "!"); absent {
			if values := header.Values(name); len(values) > 0 {
				return fmt.Errorf("%s is %q, want none", name, values)
			}
			continue
		}
		if name, least, ok := strings.Cut(pattern, ">"); ok && !strings.Contains(name, ":") {
			n, err := strconv.Atoi(header.Get(name))
			if bound, _ := strconv.Atoi(least); err != nil || n <= bound {
				return fmt.Errorf("%s is %q, want a number above %s", name, header.Get(name), least)
			}
			continue
		}
		if name, want, ok := strings.Cut(pattern, "~"); ok && !strings.Contains(name, ":") {
			got := strings.Join(header.Values(name), ", ")
			if !regexp.MustCompile(want).MatchString(got) {
				return fmt.Errorf("%s is %q, want a match of %s", name, got, want)
			}
			continue
		}
		name, want, valued := strings.Cut(pattern, ": ")
		got := strings.Join(header.Values(name), ", ")
		if name == "Host" {
			got = host
		}
		if want = s.expand(want); valued && got != want || got == "" {
			return fmt.Errorf("%s is %q, want %q", name, got, cmp.Or(want, "any value"))
		}
	}
	return nil
}
