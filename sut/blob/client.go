package blob

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// ClientConfig configures a Client.
type ClientConfig struct {
	Address string        // host:port of the node
	Secret  sut.Secret    // of the system of the node; "" = it needs none
	timeout time.Duration // bound of one call, including the connection and the body; 0 = 5 s
	// RequestID returns the id of the web request that a call serves. The client
	// sends it in sut.RequestIDHeader. nil = no id is sent.
	RequestID func(context.Context) string
	// Reserve reserves memory for an object before Get reads it. Its error ends Get. nil = no limit.
	Reserve func(ctx context.Context, bytes int64) error
}

// maxIdle bounds the idle connections of one client.
const maxIdle = 32

// errNoResponse reports that the node sent no HTTP response. A full node sends one.
var errNoResponse = errors.New("no response")

// Client talks to a blob node. Close it when it is no longer needed.
type Client struct {
	config ClientConfig
	http   *http.Client
}

// NewClient returns a client, which connects on the first call.
func NewClient(c ClientConfig) *Client {
	c.timeout = cmp.Or(c.timeout, 5*time.Second)
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: time.Second}).DialContext,
		MaxIdleConns:        maxIdle,
		MaxIdleConnsPerHost: maxIdle,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true, // JPEGs do not shrink, and Content-Length must be the object's size
	}
	return &Client{config: c, http: &http.Client{Transport: transport, Timeout: c.timeout}}
}

// Close closes the idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Put stores an object.
func (c *Client) Put(ctx context.Context, id photos.ID, v photos.Variant, data []byte) error {
	_, err := c.size(ctx, http.MethodPut, id, v, data)
	return err
}

// Get returns an object.
func (c *Client) Get(ctx context.Context, id photos.ID, v photos.Variant) ([]byte, error) {
	response, err := c.call(ctx, http.MethodGet, id, v, nil)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.ContentLength < 0 || response.ContentLength > MaxBytes {
		return nil, fmt.Errorf("GET blob %d/%s: %w: the node announced %d bytes, want 0 to %d",
			id, v, photos.ErrUnavailable, response.ContentLength, MaxBytes)
	}
	if c.config.Reserve != nil {
		if err := c.config.Reserve(ctx, response.ContentLength); err != nil {
			return nil, fmt.Errorf("GET blob %d/%s: %w", id, v, err)
		}
	}
	data := make([]byte, response.ContentLength)
	if _, err := io.ReadFull(response.Body, data); err != nil {
		return nil, fmt.Errorf("GET blob %d/%s: %w: %w", id, v, photos.ErrUnavailable, err)
	}
	return data, nil
}

// Head returns the size of an object.
func (c *Client) Head(ctx context.Context, id photos.ID, v photos.Variant) (int64, error) {
	return c.size(ctx, http.MethodHead, id, v, nil)
}

// Delete removes an object. It returns photos.ErrNotFound if there is no such object.
func (c *Client) Delete(ctx context.Context, id photos.ID, v photos.Variant) error {
	_, err := c.size(ctx, http.MethodDelete, id, v, nil)
	return err
}

// size sends a request and returns the Content-Length of the response.
func (c *Client) size(ctx context.Context, method string, id photos.ID, v photos.Variant, data []byte) (int64, error) {
	response, err := c.call(ctx, method, id, v, data)
	if err != nil {
		return 0, err
	}
	drain(response)
	return response.ContentLength, nil
}

// call sends a request. It returns the response if the status is below 300, else an
// error. The caller closes the body.
func (c *Client) call(
	ctx context.Context, method string, id photos.ID, v photos.Variant, data []byte,
) (*http.Response, error) {
	var body io.Reader
	if data != nil {
		body = bytes.NewReader(data)
	}
	url := "http://" + c.config.Address + "/blob/" + strconv.FormatInt(int64(id), 10) + "/" + string(v)
	request, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, fmt.Errorf("%s blob %d/%s: %w", method, id, v, err)
	}
	// All methods of a blob node are idempotent. This key lets the transport retry PUT
	// and DELETE: without it, a call fails when it reuses an idle connection that the
	// node closed during a restart. A key without values is not sent.
	request.Header["Idempotency-Key"] = nil
	if c.config.Secret != "" {
		request.Header["Authorization"] = []string{c.config.Secret.Bearer()}
	}
	if c.config.RequestID != nil {
		if requestID := c.config.RequestID(ctx); requestID != "" {
			request.Header[sut.RequestIDHeader] = []string{requestID}
		}
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%s blob %d/%s: %w: %w: %w", method, id, v, photos.ErrUnavailable, errNoResponse, err)
	}
	if response.StatusCode < 300 {
		return response, nil
	}
	defer drain(response)
	switch {
	case response.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("%s blob %d/%s: %w", method, id, v, photos.ErrNotFound)
	case response.StatusCode == http.StatusInsufficientStorage:
		err = photos.ErrFull
	case response.StatusCode >= 500:
		err = photos.ErrUnavailable
	default:
		return nil, fmt.Errorf("%s blob %d/%s: the node answered %s", method, id, v, response.Status)
	}
	return nil, fmt.Errorf("%s blob %d/%s: %w: the node answered %s", method, id, v, err, response.Status)
}

// drain reads the rest of a short body, so that the connection can be reused.
func drain(response *http.Response) {
	_, _ = io.CopyN(io.Discard, response.Body, 4<<10)
	response.Body.Close()
}
