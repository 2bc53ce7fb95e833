"""What is fitted from frames after training: codebooks, INT8 ranges, agreement with fp32."""
